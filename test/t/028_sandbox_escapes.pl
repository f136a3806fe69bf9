# What a command in a sandbox can't get at, tried from SQL beside a real server: its data directory, the master key, its
# sockets, its processes, another company's workspace; and what it can't use up.  That each attempt is one is shown
# by the same program outside, where it has success.
use strict;
use warnings;

use Cwd ();
use Fcntl qw(F_SETFD);
use FindBin;
use lib "$FindBin::RealBin/../lib";
use Socket;
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;

plan skip_all => 'bubblewrap can make no namespaces for this user here' if !has_sandboxes();

my $sandboxes = temporary_directory();
my $abstract = "envrt-escapes-$$";
my $node = new_cluster('escapes', conf => "envrt.sandbox_directory = '$sandboxes'\nenvrt.sandbox_on_data_filesystem = on");
# Its own user is trusted also over an abstract socket, which no file system guards.
$node->append_conf('postgresql.conf', "unix_socket_directories = '" . $node->host . ", \@$abstract'");
$node->restart;

my %limits = (memoryMb => 64, maxProcesses => 40, workspaceMb => 60, maxFileMb => 1000);
my ($lease, $neighbour) = map {
	my $company = make_company($node);
	acquire($node, $company, make_environment($node, $company, 'sandbox', { provider => 'bubblewrap', %limits }), make_run($node, $company))->{id}
} 1 .. 2;
my $workspace = "$sandboxes/leases/$lease/workspace";

sub array
{
	return 'ARRAY[' . join(', ', map { literal($_) } @_) . ']::text[]';
}

sub execute
{
	my ($command, @arguments) = @_;
	my %options = ref $arguments[-1] ? %{ pop @arguments } : ();
	my $timeout = $options{timeout} // '60 s';

	return from_json($node->safe_psql('postgres',
			"SELECT to_jsonb(e) FROM envrt_execute('$lease', " . literal($command) . ', ' . array(@arguments) . ", timeout => '$timeout') e"));
}

# What begins each attempt: try() is a system call that must not succeed; the rest dies when it gets something.
my $prelude = <<'PERL';
use strict; use warnings; use Socket; no warnings 'once';
$SIG{ALRM} = sub { die "hangs\n" }; alarm 30;
sub try {
	my ($name, $call, @rest) = map { my $copy = $_; $copy } @_;
	my $result = syscall $call, @rest;
	die "$name is possible: $result\n" if $result != -1;
	die "$name: $!\n" if !$!{EPERM} && !$!{ENOSYS};
}
sub unreadable { for my $path (@_) { open my $f, '<', $path and die "read $path\n"; opendir my $d, $path and die "listed $path\n"; } }
sub unreachable { for my $path (@_) { socket my $s, AF_UNIX, SOCK_STREAM, 0 or die; connect $s, $path =~ /^@(.*)/ ? pack('Sa*', AF_UNIX, "\0$1") : pack_sockaddr_un($path) and die "reached $path\n" } }
PERL

# The attempt fails inside, and when it is none without the sandbox, also the test of it.
sub attempt
{
	my ($name, $program, @arguments) = @_;
	my $inside = execute('perl', '-e', "$prelude$program; print 'refused'", '--', @arguments);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is("$inside->{stdout}$inside->{stderr}", 'refused', $name);
	return;
}

sub attempt_that_works_outside
{
	my ($name, $program, @arguments) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# (With what it could inherit.)
	open my $inherited, '<', '/proc/self/status' or die;
	fcntl $inherited, F_SETFD, 0;
	open my $outside, '-|', $^X, '-e', "close STDERR; $prelude$program; print 'refused'", '--', @arguments or die;
	isnt(join('', <$outside>), 'refused', "$name is possible outside");
	attempt($name, $program, @arguments);
	return;
}

#######################################################################
# The server's files
#######################################################################
my $data = $node->data_dir;

$node->safe_psql('postgres', "CREATE TABLE valuables (what text); INSERT INTO valuables VALUES ('crown jewels'); CHECKPOINT");
my $table = "$data/" . $node->safe_psql('postgres', "SELECT pg_relation_filepath('valuables')");
my $company = make_company($node);
$node->safe_psql('postgres', "SELECT envrt_create_secret('$company', 'token', 'top-secret-value')");
my $key = "$data/pg_envrt/master.key";
# (Its address has no room for the way around that the directory is named by.)
my $driver_socket = Cwd::abs_path($data) . "/pg_stat_tmp/envrt_host.sock";
my $server_socket = $node->host . "/.s.PGSQL." . $node->port;
my $other = "$sandboxes/leases/$neighbour/workspace";
EnvrtFixture::spew("$other/secret", 'of the neighbour');

like(EnvrtFixture::slurp($table), qr/crown jewels/, 'the table is in its file');
my %path = (
	'the data directory' => $data,
	'a table' => $table,
	'pg_hba.conf' => "$data/pg_hba.conf",
	'the WAL' => "$data/pg_wal",
	'the master key' => $key,
	"another lease's workspace" => $other,
	"another lease's file" => "$other/secret",
	'the sandbox directory' => $sandboxes);
my $read_in_every_way = <<'PERL';
my ($path, @pids) = @ARGV;
unreadable($path, "/proc/self/root$path", "/proc/1/root$path", '../' x 40 . $path, map { ("/proc/$_/root$path", "/proc/$_/cwd") } @pids);
unlink 'link'; symlink $path, 'link' or die "symlink: $!"; unreadable('link'); unlink 'link';
link $path, 'hard' and die "linked\n"; rename $path, 'mine' and die "moved\n"; truncate $path, 0 and die "cut\n";
PERL
my @pids = map { $node->safe_psql('postgres', $_) } 'SELECT pid FROM envrt.stat_driver_host', 'SELECT pg_backend_pid()',
  q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'};
push @pids, EnvrtFixture::slurp("$data/postmaster.pid") =~ /^(\d+)/;
for my $name (sort keys %path)
{
	# (Outside only what changes nothing.)
	ok(-r $path{$name}, "$name can be read outside");
	attempt($name, $read_in_every_way, $path{$name}, @pids);
}
# By any name: what of it is to be found by its number in all that there is.
my @numbers = map { (stat $path{$_})[1] } sort keys %path;
push @numbers, map { (stat $_)[1] } $driver_socket, $server_socket;
my $device = (stat $data)[0];
attempt('no name for any of them', <<'PERL', $device, join ',', @numbers);
my ($device, $numbers) = @ARGV; my %wanted = map { ($_ => 1) } split /,/, $numbers;
my @next = ('/');
while (defined(my $path = shift @next)) {
	next if $path =~ m{^/proc/\d};
	my ($d, $n) = lstat $path or next;
	die "found as $path\n" if $wanted{$n} && $d == $device;
	next if !-d _ || -l _;
	opendir my $h, $path or next;
	push @next, map { $path eq '/' ? "/$_" : "$path/$_" } grep { !/^\.\.?$/ } readdir $h;
}
PERL
unlike(execute('sh', '-c', 'cat /proc/*/environ /proc/*/cmdline /proc/*/mountinfo')->{stdout} =~ s{\Q/leases/$lease/\E}{}gr,
	qr/\Q$data\E|$neighbour|PGDATA/, 'nothing tells of them');

#######################################################################
# Its sockets and processes
#######################################################################
socket my $tcp, AF_INET, SOCK_STREAM, 0 or die;
bind $tcp, pack_sockaddr_in(0, INADDR_LOOPBACK) or die;
listen $tcp, 5;
my ($port) = unpack_sockaddr_in(getsockname $tcp);
attempt_that_works_outside('the driver host by its socket', 'unreachable(@ARGV)', $driver_socket);
attempt_that_works_outside('the server by its socket', 'unreachable(@ARGV)', $server_socket);
attempt_that_works_outside('the server by its abstract socket', 'unreachable(@ARGV)', "\@$abstract/.s.PGSQL." . $node->port);
attempt_that_works_outside('a port of this machine', <<'PERL', $port);
for my $address ('127.0.0.1', '10.0.0.1', '169.254.169.254') {
	socket my $s, AF_INET, SOCK_STREAM, 0 or die; local $SIG{ALRM} = sub { }; alarm 1;
	connect $s, pack_sockaddr_in($ARGV[0], inet_aton($address)) and die "reached $address\n";
}
PERL
attempt_that_works_outside('processes', 'for my $pid (@ARGV) { kill 0, $pid and die "there is $pid\n"; -e "/proc/$pid" and die "seen $pid\n" }', @pids);
attempt('to end them', 'kill($_, @ARGV) and die "sent $_\n" for qw(TERM KILL); kill("KILL", -1)', @pids);
is($node->safe_psql('postgres', 'SELECT what FROM valuables'), 'crown jewels', '... who are all well');
is($node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host'), $pids[0], '... the driver host, too');
attempt_that_works_outside('descriptors that it has not got', <<'PERL');
open my $outside, '<', '/dev/null'; 
for my $process ('self', 1) { opendir my $d, "/proc/$process/fd" or next; for my $fd (grep { /^\d+$/ } readdir $d) {
	my $what = readlink "/proc/$process/fd/$fd" or next;
	die "$fd of $process is $what\n" if !($process eq 'self' && ($fd <= 2 && $what =~ m{^(?:pipe:|/dev/null)} || $what =~ m{^/proc/\d+/fd$} || $what eq '/dev/null'));
} }
PERL

#######################################################################
# Rights
#######################################################################
attempt('to trace', 'my $child = fork; if (!$child) { sleep 60; exit } try("ptrace", 101, 16, $child, 0, 0); try("of process 1", 101, 16, 1, 0, 0); try("process_vm_readv", 310, $child, "\0" x 16, 1, "\0" x 16, 1, 0); kill 9, $child');
attempt('to mount', 'try("mount", 165, "none", "/tmp", "tmpfs", 0, 0); try("bind", 165, "/", "/tmp", 0, 4096, 0); try("umount", 166, "/tmp", 2); try("pivot_root", 155, "/tmp", "/tmp"); try("fsopen", 430, "tmpfs", 0); try("open_tree", 428, -100, "/", 1)');
attempt_that_works_outside('namespaces', 'for my $flag (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000) { try("unshare $flag", 272, $flag | 0x10000000); try("unshare only $flag", 272, $flag); try("clone $flag", 56, $flag | 17, 0, 0, 0, 0) } try("clone3", 435, pack("Q11", 0x10000000, (0) x 10), 88)');
attempt_that_works_outside('keys', 'try("keyctl", 250, 0, -3, 0); try("add_key", 248, "user", "x", "y", 1, -3); try("request_key", 249, "user", "x", 0, -3)');
attempt('programs in the kernel', 'try("bpf", 321, 5, "\0" x 128, 128); try("perf", 298, "\0" x 128, 0, -1, -1, 0); try("io_uring", 425, 8, "\0" x 120); try("userfaultfd", 323, 1); try("module", 175, "\0" x 64, 64, "")');
attempt('to type', <<'PERL');
use Fcntl; sysopen my $master, '/dev/ptmx', O_RDWR or die "ptmx: $!";
my $none = pack 'i', 0; ioctl $master, 0x40045431, $none or die; my $number = $none; ioctl $master, 0x80045430, $number or die;
sysopen my $slave, '/dev/pts/' . unpack('i', $number), O_RDWR | O_NOCTTY or die "slave: $!";
try('TIOCSTI', 16, fileno $slave, 0x5412, 'x'); try('TIOCLINUX', 16, fileno $slave, 0x541c, "\x02");
PERL
ok(-u '/usr/bin/su', 'su is setuid');
attempt('setuid programs', <<'PERL');
for my $program (grep { -u } glob '/usr/bin/*') {
	my $pid = fork // die;
	if (!$pid) { open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/dev/null'; exec $program; exit 1 }
	select undef, undef, undef, 0.02;
	if (open my $f, '<', "/proc/$pid/status") { my ($id) = join('', <$f>) =~ /^Uid:\s+\d+\s+(\d+)/m; die "$program is $id\n" if $id != 1000 }
	kill 9, $pid; waitpid $pid, 0;
}
open my $f, '>', 'mine'; chmod 04755, 'mine' and die "set one\n"; $> = 0; die "is root\n" if !$>;
PERL
attempt('to write', <<'PERL', $data, $sandboxes);
for my $path (qw(/x /usr/x /usr/bin/x /etc/x /etc/passwd /dev/x /bin/sh /proc/sys/kernel/hostname /proc/1/mem), map { "$_/x" } @ARGV) {
	if (open my $f, '>>', $path) { syswrite $f, "1" and die "wrote $path\n" } mkdir $path and die "made $path\n"; unlink $path and die "removed $path\n" }
PERL
ok(!-e "$data/x" && !-e "$sandboxes/x" && !-e '/usr/bin/x', '... and nothing is there');
is(execute('sh', '-c', 'for d in /workspace /tmp /dev/shm; do echo $d >$d/x && cat $d/x; done')->{stdout}, "/workspace\n/tmp\n/dev/shm\n", 'it can where it may');

#######################################################################
# What it can use up
#######################################################################
sub well
{
	my ($name) = @_;
	my $start = time;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(execute('echo', 'well')->{stdout} . $node->safe_psql('postgres', 'SELECT count(*) FROM valuables'), "well\n1", $name);
	cmp_ok(time - $start, '<', 20, '... at once');
	return;
}

sub processes_with
{
	my ($text) = @_;

	return grep { $_ != $$ && (eval { EnvrtFixture::slurp("/proc/$_/cmdline") } // '') =~ /$text/ } map { m{(\d+)} } glob '/proc/[0-9]*';
}

sub gone
{
	my ($text, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(eval { wait_until("$text is gone", sub { !processes_with($text) }, 10); 1 }, $name) or kill 'KILL', processes_with($text);
	return;
}

my $mark = "envrt-bomb-$$";
my $result = execute('perl', '-e', '$SIG{CHLD} = "IGNORE"; my ($most, $end) = (0, time + 3); while (time < $end) { my $pid = fork; if (!defined $pid) { $most++; next } if (!$pid) { sleep 5; exit } } print $most > 0 ? "refused" : "never refused"', $mark);
is($result->{stdout}, 'refused', 'a fork bomb');
gone($mark, '... is over with its command');
well('... and the others are well');
$result = execute('perl', '-e', 'my $x = "x" x 500_000_000; print "made"');
is($result->{stdout}, '', 'a memory bomb of one process');
$result = execute('perl', '-e', 'for (1 .. 10) { if (!fork) { my $x = "x" x 20_000_000; sleep 30; exit } } sleep 30; print "made"');
is_deeply([ @$result{qw(stdout signal)}, $result->{metadata}{limit} ], [ '', 'SIGKILL', 'memoryMb' ], '... of many');
well('... and the others are well');
for my $place (qw(/tmp /dev/shm))
{
	like(execute('dd', 'if=/dev/zero', "of=$place/x", 'bs=1M', 'count=900')->{stderr}, qr/No space left on device/, "a filler of $place");
}
like(execute('dd', 'if=/dev/zero', 'of=/dev/x', 'bs=1M', 'count=900')->{stderr}, qr/Read-only file system/, '... of /dev');
$result = execute('sh', '-c', 'i=0; while [ $i -lt 900 ]; do dd if=/dev/zero of=fill$i bs=1M count=1 2>/dev/null || exit 9; i=$((i+1)); sleep 0.02; done; echo made');
is_deeply([ @$result{qw(stdout signal)}, $result->{metadata}{limit} ], [ '', 'SIGKILL', 'workspaceMb' ], '... of the workspace');
my ($size) = `du -sm '$workspace'` =~ /^(\d+)/;
cmp_ok($size, '<', 600, "... which gets to $size MB");
execute('sh', '-c', 'rm -f fill*');
$result = execute('sh', '-c', 'head -c 10000000000 /dev/zero; echo end >&2', { timeout => '120 s' });
is_deeply([ @$result{qw(exit_code stderr)}, $result->{metadata}{stdoutBytes} ], [ 0, "end\n", 10_000_000_000 ], '10 GB of output');
my ($resident) = EnvrtFixture::slurp("/proc/$pids[0]/status") =~ /^VmRSS:\s+(\d+) kB/m;
cmp_ok($resident, '<', 60_000, '... of which the driver host keeps little');
well('... and the others are well');
my $start = time;
$result = execute('sh', '-c', 'trap "" TERM INT HUP; while :; do sleep 1000; done', $mark, { timeout => '300 ms' });
ok($result->{timed_out}, 'a command that ignores SIGTERM');
cmp_ok(time - $start, '<', 10, '... ends none the less');
gone($mark, '... all of it');
$result = execute('perl', '-e', 'use POSIX; exit 0 if fork; setsid; exit 0 if fork; open STDOUT, ">/dev/null"; open STDERR, ">&STDOUT"; exec "sh", "-c", "trap \"\" TERM HUP; while :; do sleep 1000; done", $ARGV[0]', $mark);
is($result->{exit_code}, 0, 'one that forks twice and lingers');
gone($mark, '... ends with its command');
$start = time;
$result = execute('perl', '-e', 'close $_ for *STDIN, *STDOUT, *STDERR; sleep 600', $mark, { timeout => '500 ms' });
ok($result->{timed_out}, 'one that closes its pipes and lives on');
cmp_ok(time - $start, '<', 10, '... is waited for, and ended');
gone($mark, '... all of it');
well('at last the others are well');
unlike(EnvrtFixture::slurp($node->logfile), qr/PANIC|was terminated/, 'nothing of the server has died');
done_testing();
