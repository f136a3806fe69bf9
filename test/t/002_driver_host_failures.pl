# The driver host dies, hangs, or loses its server: callers get a clear error, nobody else notices.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;

my $silent = EnvrtFixture::Silent->new->start;
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('host', conf => "envrt.ssh_connect_timeout = '60s'\nrestart_after_crash = on");
my $company = make_company($node);
my $run = make_run($node, $company);
my $good = make_ssh_environment($node, $company, $sshd);
my $hanging = make_ssh_environment($node, $company, $sshd, port => 0 + $silent->port, strictHostKeyChecking => JSON::PP::false);

sub host_pid
{
	wait_until_sql($node, "SELECT state = 'running' FROM envrt.stat_driver_host");
	return $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
}

# kill -9 of the postmaster; what it leaves behind is for start_again to wait for.
my @server;

sub kill_postmaster
{
	my ($pid) = PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	@server = ($pid, EnvrtFixture::processes_below($pid));
	$node->kill9;
	return;
}

sub start_again
{
	wait_until('the killed server to be gone', sub { !grep { -d "/proc/$_" } @server });
	$node->start;
	return;
}

# An acquire from the silent server, in the background; returns when it is under way.
sub start_hanging
{
	my $accepted = $silent->accepted;
	my ($out, $err) = ('', '');
	my $handle = IPC::Run::start(
		[ 'psql', '-X', '-d', $node->connstr('postgres'), '-v', 'VERBOSITY=verbose', '-c',
			"SELECT envrt_acquire_lease('$company', '$hanging', '$run')" ],
		'>', \$out, '2>', \$err);

	wait_until('the hanging call to connect', sub { $silent->accepted > $accepted });
	return { handle => $handle, err => \$err };
}

sub finish
{
	my ($call) = @_;

	IPC::Run::finish($call->{handle});
	return ${ $call->{err} };
}

my $postmaster_start = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
my $first = host_pid();
is((acquire($node, $company, $good, $run))->{status}, 'active', 'ssh works');

# kill -9 in the middle of a call
my $call = start_hanging();
my $time = time;
kill 'KILL', $first;
like(finish($call), qr/ERROR:  08006: the connection to the driver host was lost/, 'kill -9 of the driver host: 08006');
cmp_ok(time - $time, '<', 1, 'within a second');
$time = time;
is((acquire($node, $company, $good, $run))->{status}, 'active', 'the next acquire works');
cmp_ok(time - $time, '<', 2, 'within 2 seconds');
my $second = host_pid();
isnt($second, $first, 'on a new driver host');
like($node->safe_psql('postgres', 'SELECT last_exit FROM envrt.stat_driver_host'), qr/signal 9/, 'the view says why the last one ended');

# One that was only slow answers the launcher's ping, and stays.
$node->append_conf('postgresql.conf', "envrt.ssh_connect_timeout = '500ms'\nenvrt.ssh_command_timeout = '500ms'");
$node->reload;
wait_until_sql($node, "SELECT setting = '500' FROM pg_settings WHERE name = 'envrt.ssh_command_timeout'");
kill 'STOP', $second;
is((sql_state($node, "SELECT envrt_acquire_lease('$company', '$good', '$run')"))[0], '08006', 'a driver host that is slow: 08006');
kill 'CONT', $second;
$time = time;
# The ping's time limit is 2 seconds.
my $worked = 0;
acquire($node, $company, $good, $run) && $worked++ while time - $time < 3;
cmp_ok($worked, '>', 3, 'it goes on');
is(host_pid(), $second, 'and was not replaced');

# SIGSTOP: the call ends by its time limit, the launcher replaces the host
kill 'STOP', $second;
$time = time;
my ($state, $text) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$good', '$run')");
is($state, '08006', 'SIGSTOP of the driver host: the call ends with 08006');
like($text, qr/did not answer within the call's time limit/, 'which says so');
cmp_ok(time - $time, '<', 10, 'by its time limit');
my $third = wait_until('the launcher to replace the driver host',
	sub { my $pid = host_pid(); $pid ne $second ? $pid : undef });
ok(!kill(0, $second), 'the stopped one is gone');
is((acquire($node, $company, $good, $run))->{status}, 'active', 'and ssh works again');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster_start, 'the server never restarted');

# Only the server's user can talk to it; nothing of the server's is open in it.
my $data = $node->data_dir;
is(sprintf('%o', (stat "$data/pg_stat_tmp")[2] & 07777), '700', 'its directory is the owner\'s alone');
like(PostgreSQL::Test::Utils::slurp_file("/proc/$third/cmdline"), qr/^[^\0]*envrt_driver_host\0/, 'its arguments name no secret');
SKIP:
{
	skip '/proc of an undumpable process is not for its own user', 2 if !opendir my $fds, "/proc/$third/fd";
	my @links = map { readlink("/proc/$third/fd/$_") // () } grep { /^\d+$/ } readdir $fds;

	is(join(' ', grep { /base\/|pg_wal|\.log/ } @links), '', 'no file of the server is open in it');
	is(join(',', sort map { /^([^=]+)/ } split /\0/, PostgreSQL::Test::Utils::slurp_file("/proc/$third/environ")),
		'LC_ALL,PATH', 'its environment is clean');
}

# Somebody empties its directory, or takes it away
for my $case ([ 'its socket file is removed', sub { unlink "$data/pg_stat_tmp/envrt_host.sock" } ],
	[ 'its directory is emptied', sub { unlink glob "$data/pg_stat_tmp/*" } ],
	[ 'its directory is removed', sub { rename "$data/pg_stat_tmp", "$data/pg_stat_tmp.old" } ])
{
	my ($what, $do) = @$case;
	my $before = host_pid();

	ok($do->(), $what);
	wait_until('another driver host', sub { host_pid() ne $before }, 30);
	is((acquire($node, $company, $good, $run))->{status}, 'active', '... another one comes, and ssh works');
	is($node->safe_psql('postgres', 'SELECT last_exit FROM envrt.stat_driver_host'), 'Its socket file was removed.', '... and the view says why');
}

# One that can't start is tried again and again, and said once.
my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'envrt launcher'");
{
	my $restarts = $node->safe_psql('postgres', 'SELECT restarts FROM envrt.stat_driver_host');
	my $logged = -s $node->logfile;
	my $before = host_pid();

	open my $lock, '>', "$data/pg_stat_tmp/envrt_host.lock" or die $!;
	# While nobody starts another one, the lock is to be had.
	kill 'STOP', $launcher;
	kill 'KILL', $before;
	flock $lock, 2 or die $!;
	kill 'CONT', $launcher;
	wait_until_sql($node, "SELECT restarts >= $restarts + 3 FROM envrt.stat_driver_host", 'a driver host that can\'t start is tried again');
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged);
	is(scalar(() = $log =~ /another driver host holds/g), 1, '... and it is said once why');
	# The one that was killed, and the first that could not start
	cmp_ok(scalar(() = $log =~ /envrt driver host \(PID \d+\) has ended/g), '<=', 2, '... as is that it has ended');
	close $lock;
	host_pid();
	is((acquire($node, $company, $good, $run))->{status}, 'active', '... and when it can start, ssh works');
}

# A crash restart replaces it.
$third = host_pid();
kill 'KILL', $launcher;
wait_until('the old driver host to be gone', sub { !kill(0, $third) });
wait_until('the crash restart', sub {
		my ($status, $out) = $node->psql('postgres', 'SELECT state FROM envrt.stat_driver_host');
		$status == 0 && $out eq 'running';
	}, 60);
isnt(host_pid(), $third, 'a crash restart of the server replaces the driver host');
is((acquire($node, $company, $good, $run))->{status}, 'active', 'and ssh works');

# kill -9 of the postmaster, with a stopped host even
my $last = host_pid();
kill 'STOP', $last;
$time = time;
kill_postmaster();
wait_until('the driver host to end with its server', sub { !kill(0, $last) });
cmp_ok(time - $time, '<', 5, 'kill -9 of the postmaster: no driver host survives 5 seconds, not even a stopped one');

start_again();
$last = host_pid();
$time = time;
kill_postmaster();
wait_until('the driver host to end with its server', sub { !kill(0, $last) });
cmp_ok(time - $time, '<', 5, 'nor one that runs');
{
	my $directory = PostgreSQL::Test::Utils::tempdir();

	system('gcc', '-O2', '-D_GNU_SOURCE', '-shared', '-fPIC', '-o', "$directory/no_kill.so", "$FindBin::RealBin/../lib/no_kill.c") == 0 or die 'no_kill.c';
	local $ENV{LD_PRELOAD} = "$directory/no_kill.so";
	local $ENV{ENVRT_NO_KILL} = "$directory/no_kill";
	start_again();
	$last = host_pid();
	pass('the next server has one again');

	# One that the kernel does not end does not stop the launcher.
	PostgreSQL::Test::Utils::append_to_file("$directory/no_kill", '');
	my $logged = -s $node->logfile;
	kill 'STOP', $last;
	unlink "$data/pg_stat_tmp/envrt_host.sock";
	wait_until_sql($node, "SELECT state = 'stopped' AND last_exit = 'It was killed, and has not ended yet.' FROM envrt.stat_driver_host", 'one that does not end is given up');
	$node->safe_psql('postgres', 'CREATE DATABASE meanwhile');
	$node->safe_psql('meanwhile', 'CREATE EXTENSION envrt');
	wait_until_sql($node, "SELECT count(*) = 2 FROM envrt.stat_schedulers", '... schedulers are started meanwhile');
	unlink "$directory/no_kill";
	kill 'KILL', $last;
	isnt(host_pid(), $last, '... and another one when it has ended');
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged);
	is(scalar(() = $log =~ /envrt driver host \(PID $last\) was killed and has not ended within 2000 ms/g), 1, '... which is said once');
	like($log, qr/envrt driver host \(PID $last\) has ended at last/, '... as is its end');
}
done_testing();
