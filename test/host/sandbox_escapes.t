#!/usr/bin/perl
# What a sandbox keeps inside: each is an attempt to get out, which must fail, with a look at whether
# it did.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use SandboxTest;
use JSON::PP ();
use Socket;
use Test::More;

my $sandboxes = temporary_directory();
# Where a data directory would be hidden: below /usr.
my $data = '/usr/share/perl';
# What the server's settings name: a file, a directory, a file by way of a link, one that nobody makes,
# and one in an image.
my @hidden = ('/usr/share/common-licenses/GPL-2', '/usr/share/base-files', "$sandboxes/link", '/usr/lib/missing/key', "$sandboxes/images/own/key");
symlink '/usr/share/common-licenses/BSD', $hidden[2] or die "symlink: $!";
mkdir "$sandboxes/images" or die "mkdir: $!";
mkdir "$sandboxes/images/$_" or die "mkdir: $!" for qw(own other);
my $host = start_host(control =>
	  { sandboxDirectory => $sandboxes, dataDirectory => $data, hiddenPaths => \@hidden, sandboxOnDataFileSystem => JSON::PP::true });
my $client = $host->connect;
my $id = lease_id();
my $neighbour = lease_id();

acquire($client, $_) for $id, $neighbour;
spew("$sandboxes/leases/$neighbour/workspace/secret", 'neighbour');

# Runs Perl in the sandbox, which says "ok" at its end when nothing it tried was possible.
sub refused
{
	my ($name, $program, @arguments) = @_;
	my $result = run_perl($client, $id, <<'PERL' . $program . ';print "ok"', arguments => \@arguments);
		use strict; use warnings; use Errno; use Fcntl; use Socket;
		# A system call that must fail with one of these.
		sub try {
			# Copies: strings must not be constants.
			my ($name, $call, @rest) = map { my $copy = $_; $copy } @_;
			my @allowed = qw(EPERM ENOSYS);
			@allowed = @{ shift @rest } if ref $rest[0] eq 'ARRAY';
			$! = 0;
			my $result = syscall $call, @rest;
			my $error = (grep { $!{$_} } qw(EPERM ENOSYS EACCES ENOENT EINVAL EAFNOSUPPORT ESRCH EROFS EFAULT), '?')[0] // '?';
			die "$name: result $result, error $error ($!)\n" if $result != -1 || !grep { $_ eq $error } @allowed;
		}
PERL
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(($result->{stdout} // '') . ($result->{stderr} // ''), 'ok', $name);
	return $result;
}

#######################################################################
# The evidence works: what is refused below is possible outside
#######################################################################
is(`perl -e 'opendir D, "/proc"; print scalar grep { /^\\d/ } readdir D'` > 5, 1, 'outside there are processes to be seen');

#######################################################################
# Files
#######################################################################
my ($socket) = grep { -S } glob "$host->{directory}/*";
spew("$host->{directory}/master.key", 'secret');
for my $path ($socket, "$host->{directory}/master.key", "$sandboxes/leases/$neighbour/workspace/secret",
	$sandboxes, $host->{directory}, '/etc/shadow', '/root', '/home', '/var', '/sys', '/run', '/boot', "/proc/$host->{pid}",
	"/proc/$$/root")
{
	ok(-e $path || $path =~ m{^/root|/proc}, "$path exists outside") or next;
	refused("$path does not inside", '-e $ARGV[0] || -l $ARGV[0] and die "$ARGV[0] is there\n"; open my $f, "<", $ARGV[0] and die "$ARGV[0] can be opened\n"',
		$path);
}
refused('no way by .. and links', <<'PERL', "$sandboxes/leases/$neighbour/workspace/secret", $host->{directory});
	for my $target (@ARGV) {
		symlink $target, 'link' or die "symlink: $!";
		open my $f, '<', 'link' and die "opened $target by a link\n";
		open $f, '<', '../' x 30 . $target and die "opened $target by ..\n";
		open $f, '<', "/proc/self/root$target" and die "opened $target by root\n";
		open $f, '<', "/proc/1/root$target" and die "opened $target by process 1\n";
		open $f, '<', "/proc/1/cwd/$target" and die "opened $target by process 1\n";
		link $target, 'hard' and die "linked $target\n";
		unlink 'link';
	}
PERL
{
	my @inside = (glob("$data/*"))[0];
	ok(@inside && $inside[0], 'there is something in the data directory');
	is(output_of($client, $id, "ls -A '$data'"), '', 'a data directory below /usr is hidden');
	like(execute($client, $id, [ 'touch', "$data/x" ])->{stderr}, qr/Read-only file system/, '... and can\'t be written to');
}
for my $path ($hidden[0], readlink $hidden[2])
{
	ok(-s $path, "$path has something in it");
	is(output_of($client, $id, "cat '$path' 2>/dev/null; cp '$path' copy 2>/dev/null; cat copy 2>/dev/null"), '', '... that no sandbox sees');
}
ok(scalar(@{ [ glob "$hidden[1]/*" ] }), "$hidden[1] has something in it");
is(output_of($client, $id, "ls -A '$hidden[1]'"), '', '... that no sandbox sees');
ok(length output_of($client, $id, 'cat /usr/share/common-licenses/Artistic') > 1000, '... and what is beside it is there');
for my $image (qw(own other))
{
	my $lease = lease_id();
	acquire($client, $lease, config => { image => $image });
	my $answer = $client->call('environmentExecute', SandboxTest::execute_params($lease, ['true'], config => { image => $image }));

	is_error($answer, '55000', qr/^the image "own" holds what is the server's/, 'an image in which the server has a file') if $image eq 'own';
	is($answer->{result}{exitCode}, 127, '... and one in which it has none') if $image eq 'other';
}
for my $path (qw(/x /usr/x /usr/bin/x /etc/x /dev/x /dev/pts/x /proc/x /bin/x /.envrt-init /etc/passwd /usr/bin/env
	/proc/sys/kernel/hostname /proc/sysrq-trigger /proc/sys/vm/drop_caches /proc/1/oom_score_adj /proc/1/mem))
{
	refused("$path can't be written to",
		'if (open my $f, ">>", $ARGV[0]) { syswrite $f, "1" and die "written\n" } unlink $ARGV[0] and die "removed\n"', $path);
}
ok(!-e '/usr/bin/x', '... indeed');
for my $path (qw(/workspace/x /tmp/x /dev/shm/x))
{
	is(output_of($client, $id, "echo 1 >$path && cat $path"), "1\n", "$path can");
}
refused('no device but the harmless ones', <<'PERL');
	my @devices = grep { -b || -c } glob('/dev/*'), glob('/dev/*/*');
	my @odd = grep { !m{^/dev/(null|zero|full|random|urandom|tty|console|ptmx|pts/ptmx|stdin|fd/0)$} } @devices;
	die "devices: @odd\n" if @odd;
	require 'syscall.ph' if 0;
	# mknod of /dev/kmem and of a disk
	try('mknod', 133, "/workspace/kmem", 0020666, 1 * 256 + 2);
	try('mknod', 133, "/tmp/disk", 0060666, 8 * 256);
PERL

#######################################################################
# Processes
#######################################################################
refused('the host\'s processes are not to be seen', <<'PERL', "$host->{pid}", "$$");
	my @pids = grep { /^\d+$/ } map { s{/proc/}{}r } glob '/proc/*';
	die "processes: @pids\n" if @pids > 3;
	for my $pid (@ARGV) { kill 0, $pid and die "$pid can be reached\n"; kill -9, $pid and die "killed\n"; }
PERL
ok($host->is_alive, '... nor to be killed');
refused('process 1 can\'t be got at', <<'PERL');
	for my $file (qw(environ mem maps fd/3 fd cwd root exe ns/net task/1/mem stack syscall)) {
		if (open my $f, '<', "/proc/1/$file") { sysread $f, my $x, 1 and die "$file can be read\n" }
		opendir my $d, "/proc/1/$file" and die "$file can be listed\n";
		readlink "/proc/1/$file" and die "$file can be read as a link\n";
	}
	kill $_, 1 for qw(KILL STOP TERM SEGV INT HUP);
	select undef, undef, undef, 0.2;
	my $limit = pack 'QQ', 0, 0;
	try('prlimit', 302, 1, 7, $limit, 0);
	try('prlimit of 64 bits', 302, 4294967297, 7, $limit, 0);
	try('sched_setscheduler', 144, 1, 5, pack('i', 0));
	try('sched_setaffinity', 203, 1, 8, pack('Q', 1));
	try('setpriority', 141, 0, 1, 19);
	try('setpriority of the user', 141, 2, 0, 19);
	try('setpriority of the group', 141, 1, 1, 19);
	try('ioprio_set', 251, 1, 1, 3 << 13);
	try('ptrace', 101, 16, 1, 0, 0);
PERL
refused('no other process can be read or traced', <<'PERL');
	my $child = fork // die; if (!$child) { sleep 100; exit }
	my $buffer = "\0" x 16; my $iov = pack 'QQ', unpack('Q', pack 'P', $buffer), 16;
	try('ptrace attach', 101, 16, $child, 0, 0);
	try('ptrace seize', 101, 0x4206, $child, 0, 0);
	try('ptrace traceme', 101, 0, 0, 0, 0);
	try('process_vm_readv', 310, $child, $iov, 1, $iov, 1, 0);
	try('process_vm_writev', 311, $child, $iov, 1, $iov, 1, 0);
	my $pidfd = syscall 434, $child, 0;
	try('pidfd_getfd', 438, $pidfd, 0, 0);
	try('kcmp', 312, $$, $child, 0, 0, 0);
	kill 9, $child;
PERL
{
	my $result = run_perl($client, $id, <<'PERL');
		opendir my $d, '/proc/self/fd' or die; my $own = fileno $d;
		print join ' ', sort grep { /\d/ && readlink("/proc/self/fd/$_") !~ m{^/proc/} } readdir $d;
		opendir $d, '/proc/1/fd' and print ' process 1 too';
PERL
	is($result->{stdout}, '0 1 2', 'it inherits no descriptor');
	is(output_of($client, $id, 'readlink /proc/self/fd/0'), "/dev/null\n", '... and no stdin');
}

#######################################################################
# Rights
#######################################################################
{
	my $status = output_of($client, $id, 'cat /proc/self/status');
	my %field = $status =~ /^(\w+):\s*(.*)$/mg;

	is($field{$_}, '0' x 16, "$_ is empty") for qw(CapInh CapPrm CapEff CapBnd CapAmb);
	is($field{NoNewPrivs}, 1, 'no new privileges');
	is($field{Seccomp}, 2, 'a filter');
	like($field{Uid}, qr/^1000\s+1000\s+1000\s+1000$/, 'an ordinary user');
	my @odd = grep { !/nosuid/ } split /\n/, output_of($client, $id, 'cat /proc/mounts');
	is_deeply([ grep { !m{^proc } } @odd ], [], 'every mount is nosuid');
	my @devs = grep { !/nodev/ && !m{ /dev/} } split /\n/, output_of($client, $id, 'cat /proc/mounts');
	is_deeply(\@devs, [], '... and nodev, but for the devices');
	my @writable = map { (split)[1] } grep { /^\S+ \S+ \S+ rw/ } split /\n/, output_of($client, $id, 'cat /proc/mounts');
	is_deeply([ sort grep { !m{^/dev/(null|zero|full|random|urandom|tty|console|pts)$|^/proc} } @writable ],
		[qw(/dev/shm /tmp /workspace)], 'three can be written to');
}
ok(-u '/usr/bin/su', 'there is a setuid program');
refused('setuid programs give nothing', <<'PERL');
	# It would say "Authentication failure" as root; as an ordinary user it can't even ask.
	for my $program (grep { -u $_ } glob '/usr/bin/*') {
		my $pid = fork // die;
		if (!$pid) { open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/dev/null'; exec $program; exit 1 }
		select undef, undef, undef, 0.02;
		if (open my $f, '<', "/proc/$pid/status") {
			my ($euid) = join('', <$f>) =~ /^Uid:\s+\d+\s+(\d+)/m;
			die "$program runs as $euid\n" if $euid != 1000;
		}
		kill 9, $pid; waitpid $pid, 0;
	}
	chmod 0755, 'mine'; open my $f, '>', 'mine'; close $f;
	chmod 04755, 'mine' and die "chmod u+s\n";
	chmod 02755, 'mine' and die "chmod g+s\n";
	sysopen $f, 'other', O_CREAT | O_WRONLY, 04755 and die "open with u+s\n";
	try('setuid', 105, 0, ['EINVAL']) if 0;
	$> = 0; die "became root\n" if $> == 0;
PERL
is_deeply([ grep { (stat)[2] & 06000 } glob "$sandboxes/leases/$id/workspace/*" ], [], '... nor are any made');

#######################################################################
# System calls
#######################################################################
refused('no namespaces', <<'PERL');
	for my $flag (0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x02000000) {
		try("unshare $flag", 272, $flag);
		try("clone $flag", 56, $flag | 17, 0, 0, 0, 0);
	}
	try('clone3', 435, pack('Q11', 0x10000000, (0) x 10), 88);
	open my $f, '<', '/proc/self/ns/user' or die;
	try('setns', 308, fileno $f, 0);
PERL
refused('no mounts', <<'PERL');
	try('mount', 165, 'none', '/tmp', 'tmpfs', 0, 0);
	try('bind mount', 165, '/', '/tmp', 0, 4096, 0);
	try('remount', 165, 0, '/', 0, 32, 0);
	try('umount2', 166, '/tmp', 2);
	try('pivot_root', 155, '/tmp', '/tmp');
	try('chroot', 161, '/tmp');
	try('fsopen', 430, 'tmpfs', 0);
	try('fsmount', 432, 0, 0, 0);
	try('move_mount', 429, -100, '/tmp', -100, '/workspace', 0);
	try('open_tree', 428, -100, '/', 1);
	try('mount_setattr', 442, -100, '/', 0, "\0" x 32, 32);
PERL
refused('no keys', <<'PERL');
	try('add_key', 248, 'user', 'x', 'y', 1, -3);
	try('request_key', 249, 'user', 'x', 0, -3);
	try('keyctl', 250, 0, -3, 0);
PERL
refused('nothing of the kernel\'s inside', <<'PERL');
	try('bpf', 321, 5, "\0" x 128, 128);
	try('userfaultfd', 323, 1);
	try('perf_event_open', 298, "\0" x 128, 0, -1, -1, 0);
	try('io_uring_setup', 425, 8, "\0" x 120);
	try('kexec_load', 246, 0, 0, 0, 0);
	try('kexec_file_load', 320, 0, 0, 0, 0, 0);
	try('init_module', 175, "\0" x 64, 64, '');
	try('finit_module', 313, 0, '', 0);
	try('delete_module', 176, 'x', 0);
	try('swapon', 167, '/tmp/x', 0);
	try('reboot', 169, 0xfee1dead, 672274793, 0x1234567, 0);
	try('name_to_handle_at', 303, -100, '/', "\0" x 128, "\0" x 8, 0);
	try('open_by_handle_at', 304, 0, "\0" x 128, 0);
	try('syslog', 103, 3, "\0" x 64, 64);
	try('acct', 163, '/tmp/x');
	try('quotactl', 179, 0, 0, 0, 0);
	try('settimeofday', 164, "\0" x 16, 0);
	try('clock_settime', 227, 0, "\0" x 16);
	try('sethostname', 170, 'x', 1);
	try('iopl', 172, 3);
	try('modify_ldt', 154, 0, "\0" x 16, 16);
	try('memfd_create', 319, 'x', 0);
	try('shmget', 29, 0, 10_000_000, 01600);
	try('semget', 64, 0, 32000, 01600);
	try('msgget', 68, 0, 01600);
	try('io_setup', 206, 1000, "\0" x 8);
	try('personality', 135, 0x0400000);
	try('fanotify_init', 300, 0, 0);
	try('vhangup', 153);
	try('a call of the future', 600);
	try('an x32 call', 0x40000000 + 39);
PERL
refused('nothing typed into terminals', <<'PERL');
	sysopen my $master, '/dev/ptmx', O_RDWR or die "ptmx: $!";
	my $unlocked = pack 'i', 0; ioctl $master, 0x40045431, $unlocked or die "unlock: $!";
	my $number = pack 'i', 0; ioctl $master, 0x80045430, $number or die "number: $!";
	sysopen my $slave, '/dev/pts/' . unpack('i', $number), O_RDWR | O_NOCTTY or die "slave: $!";
	my $character = 'x';
	for my $cmd (0x5412, 0x541c, 0x5412 + 2 ** 32) { try("ioctl $cmd", 16, fileno $slave, $cmd, $character); }
PERL

#######################################################################
# The network
#######################################################################
{
	socket my $tcp, AF_INET, SOCK_STREAM, 0 or die;
	bind $tcp, pack_sockaddr_in(0, INADDR_LOOPBACK) or die;
	listen $tcp, 5;
	my ($port) = unpack_sockaddr_in(getsockname $tcp);
	socket my $abstract, AF_UNIX, SOCK_STREAM, 0 or die;
	bind $abstract, pack 'Sa*', AF_UNIX, "\0envrt-test-$$" or die;
	listen $abstract, 5;
	my $path = temporary_directory() . '/s';
	socket my $unix, AF_UNIX, SOCK_STREAM, 0 or die;
	bind $unix, pack_sockaddr_un($path) or die;
	listen $unix, 5;

	my $check = <<'PERL';
		my ($port, $abstract, $path, $hostpath) = @ARGV;
		my $reached = '';
		for my $address ('127.0.0.1', '10.0.0.1', '169.254.169.254', '8.8.8.8') {
			socket my $s, AF_INET, SOCK_STREAM, 0 or die "no socket: $!";
			$s->blocking(0) if 0;
			connect $s, pack_sockaddr_in($port, inet_aton($address)) and $reached .= "tcp $address\n";
		}
		socket my $s, AF_UNIX, SOCK_STREAM, 0 or die;
		connect $s, pack 'Sa*', AF_UNIX, "\0$abstract" and $reached .= "abstract\n";
		for my $p ($path, $hostpath) { socket $s, AF_UNIX, SOCK_STREAM, 0; connect $s, pack_sockaddr_un($p) and $reached .= "unix $p\n"; }
		die $reached if $reached;
PERL
	local @ARGV = ($port, "envrt-test-$$", $path, $socket);
	eval $check;
	is($@ =~ tr/\n//, 4, 'outside they can be reached');
	refused('nobody is reached from inside', $check, "$port", "envrt-test-$$", $path, $socket);
	is(output_of($client, $id, 'cat /proc/net/unix | wc -l; cat /proc/net/dev | tail -n +3 | cut -d: -f1'), "1\n    lo\n",
		'there is only the sandbox\'s own loopback');
}
refused('no other kinds of sockets', <<'PERL');
	# vsock, packet, alg, bluetooth, can, xdp, netlink of other protocols, the family in 64 bits
	try("socket $_", 41, $_, 1, 0) for 40, 17, 38, 31, 29, 44, 45, 46, 0, 3, 47, 2 ** 32 + 40;
	try('packet', 41, 17, 3, 0);
	try("netlink $_", 41, 16, 3, $_) for 4, 9, 12, 15, 16;
	try('socketpair', 53, 40, 1, 0, pack 'ii', 0, 0);
	try('raw', 41, 2, 3, 1, ['EPERM', 'EACCES']) if 0;
PERL
is(
	run_perl($client, $id, <<'PERL')->{stdout}, 'hello', 'sockets within the sandbox work');
	use Socket;
	socket my $s, AF_INET, SOCK_STREAM, 0 or die; bind $s, pack_sockaddr_in(0, INADDR_LOOPBACK) or die; listen $s, 1;
	if (!fork) { socket my $c, AF_INET, SOCK_STREAM, 0; connect $c, getsockname $s; syswrite $c, 'hello'; exit }
	accept my $a, $s; sysread $a, my $x, 5; print $x;
PERL

is($host->log_text, '', 'there was nothing to complain about');
is($host->terminate, 0, 'the host ends in order');
done_testing();
