#!/usr/bin/perl
# What a sandbox may use, and commands that want more.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use SandboxTest;
use JSON::PP ();
use Test::More;

my $directory = temporary_directory();
my $host = start_host(sandboxes => $directory);
my $client = $host->connect;
my $id = lease_id();
my $true = JSON::PP::true;

acquire($client, $id);

sub with
{
	my (%config) = @_;

	return (config => \%config, timeoutMs => 30000);
}

sub names_in
{
	my ($directory, $lease) = @_;
	my @names = glob "$directory/leases/$lease/workspace/*";

	return scalar @names;
}

sub resident
{
	return $host->stats->{host}{rssBytes};
}

#######################################################################
# What the kernel knows
#######################################################################
{
	my $limits = output_of($client, $id, 'cat /proc/self/limits',
		with(memoryMb => 64, maxProcesses => 20, maxFileMb => 2, cpuSeconds => 3));
	my %limit = map { /^(Max .*?)\s{2,}(\S+)\s+(\S+)/ ? ($1 => "$2 $3") : () } split /\n/, $limits;

	is($limit{'Max data size'}, join(' ', (64 << 20) x 2), 'memory of a process');
	is($limit{'Max processes'}, '21 21', 'processes');
	is($limit{'Max file size'}, join(' ', (2 << 20) x 2), 'the size of a file');
	is($limit{'Max cpu time'}, '3 4', 'processor time');
	is($limit{'Max core file size'}, '0 0', 'no core dumps');
	is($limit{'Max open files'}, '1024 1024', 'open files');
}
{
	my $result = run_perl($client, $id, 'my $x = "x" x 200_000_000; print "made"', with(memoryMb => 64));
	is($result->{stdout}, '', 'a process that needs too much memory');
	isnt($result->{exitCode} // 'signal', 0, '... fails');
	$result = run_perl($client, $id, 'my $x = "x" x 20_000_000; print "made"', with(memoryMb => 64));
	is($result->{stdout}, 'made', 'one that needs less');
}
{
	my $result;
	my $took = elapsed(sub { $result = run_perl($client, $id, '1 while 1', with(cpuSeconds => 1)) });
	is($result->{signal}, 'SIGXCPU', 'a process that takes too much processor time');
	cmp_ok($took, '<', 10, '... ends');
}
{
	my $result = execute($client, $id, [ 'dd', 'if=/dev/zero', 'of=big', 'bs=1M', 'count=5' ], with(maxFileMb => 2));
	is($result->{signal}, 'SIGXFSZ', 'a file that is too large');
	is(-s "$directory/leases/$id/workspace/big", 2 << 20, '... has what it may have');
	unlink "$directory/leases/$id/workspace/big";
}
SKIP:
{
	skip 'root may start any number of processes', 5 if $> == 0;
	my $result = run_perl($client, $id, <<'PERL', with(maxProcesses => 20));
		$| = 1; $SIG{CHLD} = 'IGNORE'; my $count = 0;
		for (1 .. 100) { my $pid = fork; if (!defined $pid) { print "refused after $count: $!\n"; last } exec 'sleep', '54331' if !$pid; $count++ }
PERL
	like($result->{stdout}, qr/^refused after 19: Resource temporarily unavailable$/, 'as many processes as it may have');
	is_gone('54331', '... and none left');
	# Several at once: each has its own count.
	my @others = map { lease_id() } 1 .. 5;
	acquire($client, $_) for @others;
	my @clients = map { $host->connect } @others;
	my $bomb = '$SIG{CHLD} = "IGNORE"; my $deadline = time + 3; while (time < $deadline) { fork } exit 0';
	my @calls = map {
		$clients[$_]->send_call('environmentExecute',
			SandboxTest::execute_params($others[$_], [ 'perl', '-e', $bomb, '--', 'bomb' ], with(maxProcesses => 30), timeoutMs => 4000))
	} 0 .. $#others;
	my $most = 0;
	my $end = time + 2;
	while (time < $end)
	{
		my $count = () = processes_with('bomb');
		$most = $count if $count > $most;
		sleep 0.1;
	}
	# Each with bwrap and the first process, which have other arguments.
	ok($most > 30 && $most <= 150, "five fork bombs have $most processes");
	is(output_of($client, $id, 'echo here'), "here\n", '... and disturb nobody');
	$clients[$_]->answer($calls[$_]) for 0 .. $#others;
	is_gone('bomb', '... and none is left');
	$client->call('environmentDestroyLease', sandbox_params($_)) for @others;
}

#######################################################################
# What the first process looks after
#######################################################################
{
	my $result = run_perl($client, $id, <<'PERL', with(memoryMb => 64, maxProcesses => 20));
		for (1 .. 8) { if (!fork) { my $x = "x" x 20_000_000; sleep 20; exit } } sleep 20; print 'made';
PERL
	is_deeply(
		[ @{$result}{qw(exitCode signal stdout)}, $result->{metadata}{limit} ],
		[ undef, 'SIGKILL', '', 'memoryMb' ],
		'processes that need too much memory together');
	is($result->{stderr}, "envrt: ended, since the processes of the sandbox use more than memoryMb allows (64 MB)\n",
		'... are ended, and it is said why');
	cmp_ok($result->{metadata}{durationMs}, '<', 10000, '... soon');
	# Shared by all, it counts once.
	$result = run_perl($client, $id, <<'PERL', with(memoryMb => 64, maxProcesses => 30));
		my $x = "x" x 20_000_000; for (1 .. 15) { if (!fork) { sleep 2; exit } } 1 while wait > 0; print 'made';
PERL
	is($result->{stdout}, 'made', 'what processes share counts once');
}
for my $place ('/tmp', '/dev/shm')
{
	my $result = execute($client, $id, [ 'dd', 'if=/dev/zero', "of=$place/x", 'bs=1M' ], with(memoryMb => 64, maxFileMb => 1000));
	my $size = $place eq '/tmp' ? 32 : 16;

	like($result->{stderr}, qr/No space left on device/, "$place is full");
	like($result->{stderr}, qr/^@{[ $size << 20 ]} bytes/m, "... at $size MB");
}
like(execute($client, $id, [ 'dd', 'if=/dev/zero', 'of=/dev/x', 'bs=1M' ])->{stderr}, qr/Read-only file system/,
	'/dev can\'t be filled');
{
	my $lease = lease_id();
	my $workspace = "$directory/leases/$lease/workspace";
	my %limits = with(workspaceMb => 20, maxFileMb => 5);

	acquire($client, $lease);
	my $result = run_perl($client, $lease, <<'PERL', %limits);
		my $x = "x" x 1_000_000; for (1 .. 500) { open my $f, '>', "f$_" or die; print $f $x; close $f; select undef, undef, undef, 0.02 } print 'made';
PERL
	is_deeply([ @{$result}{qw(signal stdout)}, $result->{metadata}{limit} ], [ 'SIGKILL', '', 'workspaceMb' ],
		'a workspace that gets too full');
	like($result->{stderr}, qr/^envrt: ended, since the workspace holds more than workspaceMb allows \(20 MB\)$/,
		'... and it is said why');
	my ($size) = `du -sm '$workspace'` =~ /^(\d+)/;
	cmp_ok($size, '<', 60, "... at $size MB");
	$result = execute($client, $lease, [ 'sh', '-c', 'echo x >new' ], %limits);
	is($result->{signal}, 'SIGXFSZ', 'then nothing can be added');
	ok($result->{metadata}{workspaceFull}, '... and it is said why');
	ok(!-s "$workspace/new", '... indeed');
	is(execute($client, $lease, [ 'sh', '-c', 'rm f*' ], %limits)->{exitCode}, 0, '... but removed');
	is(output_of($client, $lease, 'echo x >new; cat new', %limits), "x\n", '... and then added again');

	# In many short commands.
	my $full = 0;
	for (1 .. 15)
	{
		my $end = execute($client, $lease, [ 'dd', 'if=/dev/zero', "of=g$_", 'bs=1M', 'count=4' ], %limits);
		$full++ if ($end->{exitCode} // 1) != 0;
	}
	($size) = `du -sm '$workspace'` =~ /^(\d+)/;
	cmp_ok($size, '<=', 28, "many short commands get it to $size MB");
	cmp_ok($full, '>=', 8, '... and no further');
	execute($client, $lease, [ 'sh', '-c', 'rm g*' ], %limits);
	# Nothing but names.
	$result = run_perl($client, $lease, 'for (1 .. 50000) { open my $f, ">", "n$_"; select undef, undef, undef, 0.05 if $_ % 1000 == 0 } print "made"', %limits);
	is($result->{metadata}{limit}, 'workspaceMb', 'empty files count as well');
	$client->call('environmentDestroyLease', sandbox_params($lease));
	ok(!-e $workspace, 'all of it goes');

	# Where the first process may not look, or sees no name.
	my $fill = 'my $x = "x" x 1_000_000; for (1 .. 200) { open my $f, ">", "f$_" or die; print $f $x; close $f; select undef, undef, undef, 0.02 } print "made"';
	my %hidden = (
		'a workspace that may not be read' => "chmod 0300, '.'; $fill",
		'a directory that may not be read' => "mkdir 'd'; chdir 'd'; chmod 0300, '.'; $fill",
		'a directory that may not be entered' => "mkdir 'd'; mkdir 'd/e'; chdir 'd/e'; chmod 0400, '/workspace/d'; $fill",
		'a directory that is nobody\'s to use' => "mkdir 'd'; mkdir 'd/e'; chdir 'd/e'; chmod 0, '/workspace/d'; $fill",
		'files without a name' =>
		  'my $x = "x" x 1_000_000; my @f; for (1 .. 200) { open my $f, ">", "f$_" or die; print $f $x; $f->flush; unlink "f$_"; push @f, $f; select undef, undef, undef, 0.02 } print "made"');
	for my $name (sort keys %hidden)
	{
		acquire($client, $lease = lease_id());
		$result = run_perl($client, $lease, $hidden{$name}, %limits);
		is_deeply([ $result->{stdout}, $result->{metadata}{limit} ], [ '', 'workspaceMb' ], "$name: what is in it counts");
		$client->call('environmentDestroyLease', sandbox_params($lease));
	}
	# What only looks so is not ended, and is as it was.
	acquire($client, $lease = lease_id());
	$result = run_perl($client, $lease, <<'PERL', %limits);
		mkdir 'd', 0300; chmod 0300, 'd'; open my $f, '+>', 'f' or die; print $f 'x' x 1_000_000; $f->flush; unlink 'f';
		for (1 .. 100) { if (!fork) { sleep 2; exit } } 1 while wait > 0; printf 'made %o', 07777 & (stat 'd')[2];
PERL
	is($result->{stdout}, 'made 300', 'a file without a name that many processes have counts once');
	is($result->{metadata}{limit}, undef, '... and nothing is ended');
	# Too full at the start: names have a size as well.
	run_perl($client, $lease, $fill, %limits);
	my $before = names_in($directory, $lease);
	$result = run_perl($client, $lease, 'my $x = "x" x 4000; for (1 .. 100000) { symlink $x, "l$_" or die } print "made"', %limits);
	is_deeply([ $result->{stdout}, @{ $result->{metadata} }{qw(limit workspaceFull)} ], [ '', 'workspaceMb', $true ],
		'when it is too full, more links end the command');
	cmp_ok(names_in($directory, $lease) - $before, '<', 50000, '... soon');
	is(execute($client, $lease, [ 'sh', '-c', 'find . -type l -delete; rm -f f*; mkdir new' ], %limits)->{exitCode}, 0, '... but they can be removed');
	$client->call('environmentDestroyLease', sandbox_params($lease));
}
# What the kernel keeps for open files and sockets is memory, too.
{
	my %limits = with(memoryMb => 64, maxProcesses => 30);
	# Each in as many processes as are given, which wait when they have what they want.
	my $in_processes = sub {
		my ($count, $program) = @_;
		return "use Socket; \$| = 1; my \@kept; for (1 .. $count) { next if fork; $program; print 'made '; sleep 60; exit } 1 while wait > 0";
	};
	my %too_much = (
		'open files' => $in_processes->(10, 'for (1 .. 200) { open my $f, "<", "/dev/null" or die; push @kept, $f }'),
		'pipes' => $in_processes->(10, 'for (1 .. 100) { pipe my $r, my $w or die; push @kept, $r, $w }'),
		'sockets' => $in_processes->(10, 'for (1 .. 100) { socketpair my $a, my $b, AF_UNIX, SOCK_STREAM, 0 or die; push @kept, $a, $b }'),
		'files of processes that hide them' => $in_processes->(3, 'syscall 157, 4, 0, 0, 0, 0'),
		# An epoll file, and every number that one file may have in it, again and again.
		'epoll watches' => $in_processes->(1, 'for (1 .. 100) { my $e = syscall 291, 0; pipe my $r, my $w or die; push @kept, $r, $w; for (1 .. 900) { my $n = syscall 32, fileno $r; last if $n < 0; my $x = pack "LQ", 1, 0; syscall 233, $e, 1, $n, $x; push @n, $n } syscall 3, $_ for splice @n }'));

	for my $what (sort keys %too_much)
	{
		my $result = run_perl($client, $id, $too_much{$what}, %limits);

		is_deeply([ $result->{signal}, $result->{metadata}{limit} ], [ 'SIGKILL', 'memoryMb' ], "too many $what");
		like($result->{stderr}, qr/^envrt: ended, since the processes of the sandbox have more open files or sockets than memoryMb allows \(1024\), or more than 65536 epoll watches$/m,
			'... and it is said why');
	}
	my $result = run_perl($client, $id, <<'PERL', %limits);
		use IO::Socket::INET; my $l = IO::Socket::INET->new(Listen => 200, LocalAddr => '127.0.0.1') or die; my @kept;
		for (1 .. 200) {
			my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $l->sockport) or die; push @kept, $s, $l->accept;
			setsockopt $s, SOL_SOCKET, SO_SNDBUF, 4_000_000 or die; $s->blocking(0); 1 while syswrite $s, 'x' x 65536; select undef, undef, undef, 0.02;
		}
		print 'made'; sleep 60;
PERL
	is_deeply([ $result->{signal}, $result->{stdout}, $result->{metadata}{limit} ], [ 'SIGKILL', '', 'memoryMb' ], 'too much on its way between sockets');
	$result = run_perl($client, $id, $in_processes->(10, 'for (1 .. 20) { socketpair my $a, my $b, AF_UNIX, SOCK_STREAM, 0 or die; push @kept, $a, $b } select undef, undef, undef, 1; exit'), %limits);
	is_deeply([ $result->{exitCode}, $result->{metadata}{limit} ], [ 0, undef ], 'what programs need is no such thing');
}
{
	my $result = run_perl($client, $id, <<'PERL', with(memoryMb => 64, maxProcesses => 30));
		require POSIX; my %seen;
		# What it can do to the process that looks: stop it, slow it down, take its time.
		kill $_, 1 for qw(STOP KILL TERM); setpriority 0, 1, 19;
		for (1 .. 4) { if (!fork) { 1 while 1 } }
		for (1 .. 8) { if (!fork) { my $x = "x" x 20_000_000; sleep 30; exit } } sleep 30; print 'made';
PERL
	is($result->{metadata}{limit}, 'memoryMb', 'one that works against the limits');
}

#######################################################################
# Output
#######################################################################
{
	my $before = resident();
	my $most = 0;
	my $watcher = $host->connect;
	my $megabytes = $ENV{ENVRT_DRIVER_HOST} ? 500 : 10_000;
	my $call = $client->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', "dd if=/dev/zero bs=1M count=$megabytes 2>/dev/null; echo end >&2" ],
			limits => { maxOutput => 100_000 }, timeoutMs => 110_000));
	my $deadline = time + 100;
	while (!$client->{answers}{$call} && time < $deadline)
	{
		my $now = $watcher->call('envrt/stats', {})->{result}{host}{rssBytes};
		$most = $now if $now > $most;
		my $bits = '';
		vec($bits, fileno $client->{socket}, 1) = 1;
		last if select $bits, undef, undef, 0.2;
	}
	my $result = $client->answer($call, 120)->{result};
	is($result->{exitCode}, 0, "a command that writes $megabytes MB");
	is(length $result->{stdout}, 100_000, '... of which the first are kept');
	is($result->{metadata}{stdoutBytes}, $megabytes << 20, '... and all are counted');
	ok($result->{metadata}{stdoutTruncated}, '... and it is said that they are cut');
	is($result->{stderr}, "end\n", '... and the other stream is not');
	cmp_ok($most - $before, '<', 16 << 20, '... and the host grows by ' . int(($most - $before) / 1024) . ' kB');
}
SKIP:
{
	skip 'what is freed is kept, to find who still uses it', 1 if $ENV{ENVRT_DRIVER_HOST};
	for (1 .. 100) { execute($client, $id, [ 'true' ], stdin => 'x' x 100_000) }
	my $middle = resident();
	for (1 .. 200) { execute($client, $id, [ 'true' ], stdin => 'x' x 100_000) }
	cmp_ok(resident() - $middle, '<', 4 << 20, 'commands leave nothing in the host\'s memory');
}

is($host->log_text, '', 'there was nothing to complain about');
is($host->terminate, 0, 'the host ends in order');
done_testing();
