# 200 sandboxes at once: each is made, runs something while all the others do, and leaves nothing.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Fcntl qw(O_WRONLY O_NONBLOCK);
use File::Find ();
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;

plan skip_all => 'bubblewrap can make no namespaces for this user here' if !has_sandboxes();

my $many = 200;
my $began = time;
my $sandboxes = temporary_directory();
my $node = new_cluster('many',
	conf => "envrt.sandbox_directory = '$sandboxes'\nenvrt.sandbox_on_data_filesystem = on\nmax_connections = " . ($many + 20));
my $company = make_company($node);
my $agent = make_agent($node, $company);
my $environment = make_environment($node, $company, 'sandbox', { provider => 'bubblewrap', memoryMb => 64 });

$node->safe_psql('postgres', <<"SQL");
CREATE TABLE clients (n serial, run uuid);
CREATE TABLE results (n integer, lease uuid, exit_code integer, signal text, stdout text, stderr text);
WITH made AS (INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status)
    SELECT '$company', '$agent', 'running' FROM generate_series(1, $many) RETURNING id)
INSERT INTO clients (run) SELECT id FROM made;
SQL

# What there is of sandboxes on the machine: processes below the driver host (with when they were started, since a
# pid may be another's soon), mounts and control groups that are ours, folders.
my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');

sub process
{
	my ($pid) = @_;
	my ($parent, $start) = (eval { EnvrtFixture::slurp("/proc/$pid/stat") } // '') =~ /^\d+ \(.*\) \S (\d+) (?:\S+ ){17}(\d+) /s;

	return ($parent, $start);
}

sub processes
{
	my %children;
	my @found;

	for my $pid (map { m{(\d+)} } glob '/proc/[0-9]*')
	{
		my ($parent, $start) = process($pid);
		push @{ $children{$parent} }, "$pid $start" if defined $parent;
	}
	my @next = ($host);
	while (defined(my $pid = shift @next))
	{
		my @below = @{ delete $children{$pid} // [] };
		push @found, @below;
		push @next, map { (split)[0] } @below;
	}
	return @found;
}

sub is_there
{
	my ($pid, $start) = split ' ', $_[0];

	return ((process($pid))[1] // '') eq $start;
}

sub mounts
{
	return grep { /\Q$sandboxes\E/ } split /\n/, EnvrtFixture::slurp('/proc/self/mounts');
}

sub groups
{
	my @found;

	File::Find::find({ no_chdir => 1, wanted => sub { push @found, $_ if -d && m{/envrt-$host-[^/]*$} } }, '/sys/fs/cgroup') if -d '/sys/fs/cgroup';
	return @found;
}

sub folders
{
	my @found = glob "$sandboxes/leases/* $sandboxes/trash/*";

	return @found;
}

#######################################################################
# All at once
#######################################################################
my $script = "$sandboxes.sql";
# Each waits for a word that comes when all of them do.
EnvrtFixture::spew($script, <<"SQL");
SELECT run FROM clients WHERE n = :client_id + 1 \\gset
SELECT id AS lease FROM envrt_acquire_lease('$company', '$environment', ':run') \\gset
INSERT INTO results SELECT :client_id, ':lease', exit_code, signal, stdout, stderr
FROM envrt_execute(':lease', 'sh', ARRAY['-c', 'mkfifo go && echo \$\$ >started && read word <go && echo "\$word" && id -u && exit 3'], timeout => '60 s');
SQL
my $pgbench = fork // die "can't fork: $!";
if (!$pgbench)
{
	open STDOUT, '>', "$script.out";
	open STDERR, '>&', \*STDOUT;
	exec 'pgbench', '-n', '-M', 'simple', '-c', $many, '-j', 2, '-t', 1, '-f', $script, $node->connstr('postgres');
	exit 1;
}
my @started;
eval { wait_until('all have started', sub { @started = grep { -s } glob "$sandboxes/leases/*/workspace/started"; @started == $many }, 50) };
is(scalar @started, $many, "$many sandboxes run at once");
# bwrap, the sandbox's first process, and the command.
my @processes = processes();
cmp_ok(scalar @processes, '>=', 3 * $many, '... each with its processes');
is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.stat_sandboxes WHERE commands = 1'), $many, '... and can be seen')
  if $node->safe_psql('postgres', "SELECT to_regclass('envrt.stat_sandboxes') IS NOT NULL") eq 't';
my $word = 0;
for my $file (@started)
{
	my $fifo = $file =~ s/started$/go/r;

	sysopen my $handle, $fifo, O_WRONLY or die "can't open $fifo: $!";
	syswrite $handle, 'word ' . ++$word . "\n";
}
waitpid $pgbench, 0;
is($?, 0, 'no call fails') or diag(EnvrtFixture::slurp("$script.out"));
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT lease), count(DISTINCT stdout) FROM results'), "$many|$many|$many", 'each has its own answer');
is($node->safe_psql('postgres', q{SELECT DISTINCT exit_code, signal, stderr, regexp_replace(stdout, '\d+', 'N') FROM results}), "3||\|word N\n1000\n", '... as it should be');

#######################################################################
# Nothing is left
#######################################################################
is(scalar(my @kept = folders()), $many, 'until its end each lease has a folder');
$node->safe_psql('postgres', q{UPDATE envrt.heartbeat_runs SET status = 'succeeded'});
wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.provider_leases', 'the ledger to be empty');
is($node->safe_psql('postgres', q{SELECT status, cleanup_status, count(*) FROM envrt.environment_leases GROUP BY 1, 2}), "released|success|$many", 'all are released');
eval { wait_until('nothing runs', sub { !processes() }) };
is_deeply([ grep { is_there($_) } processes(), @processes ], [], 'no process is left');
is_deeply([ folders() ], [], '... no folder');
is_deeply([ mounts() ], [], '... no mount');
is_deeply([ groups() ], [], '... no control group');
my $log = EnvrtFixture::slurp($node->logfile);
unlike($log, qr/WARNING|ERROR/, 'nothing was complained about');
unlink $script, "$script.out";
my $took = time - $began;
cmp_ok($took, '<', 60, sprintf('all of it took %.0f s', $took));
done_testing();
