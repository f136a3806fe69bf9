#!/usr/bin/perl
# The bubblewrap driver: leases, and commands in them.

use strict;
use warnings;
use utf8;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use SandboxTest;
use JSON::PP ();
use MIME::Base64;
use Test::More;

my $directory = temporary_directory();
my $host = start_host(sandboxes => $directory);
my $client = $host->connect;

# What came of a stream while the command ran.
sub streamed
{
	my ($reader, $call, $stream) = @_;

	return join '', map { decode_base64($_->{params}{dataBase64}) }
	  grep { $_->{params}{id} == $call && $_->{params}{stream} eq $stream } @{ $reader->{notifications} // [] };
}

#######################################################################
# Leases
#######################################################################
{
	my $id = lease_id();
	my $workspace = "$directory/leases/$id/workspace";
	my %named = (providerLeaseId => provider_id($id));

	is_deeply(
		acquire($client, $id)->{result},
		{
			providerLeaseId => "sandbox://bubblewrap/$id",
			metadata => { remoteCwd => '/workspace', image => undef },
			expiresAt => undef
		},
		'an acquire');
	is((stat $workspace)[2] & 07777, 0700, 'the workspace is for its user alone');
	is((stat "$directory/leases")[2] & 07777, 0700, '... and so are all of them');
	spew("$workspace/file", 'text');
	ok(acquire($client, $id)->{result}, 'an acquire again');
	is(slurp("$workspace/file"), 'text', '... changes nothing');
	is($client->call('environmentResumeLease', sandbox_params($id, %named))->{result}{providerLeaseId},
		provider_id($id), 'a resume');
	my $list = $client->call('environmentListLeases', sandbox_params($id, leaseIds => [ $id, lease_id() ]));
	is_deeply(
		$list->{result},
		{
			leases => [
				{
					leaseId => $id,
					providerLeaseId => provider_id($id),
					metadata => { remoteCwd => '/workspace', image => undef }
				}
			]
		},
		'a list');
	my ($row) = grep { $_->{leaseId} eq $id } @{ $host->stats->{sandboxes} };
	is($row->{commands}, 0, 'the statistics know it');
	ok($row->{since} > 1.6e12, '... and since when');

	is_deeply($client->call('environmentReleaseLease', sandbox_params($id, %named, keep => JSON::PP::true))->{result},
		{ outcome => 'released' }, 'a release for reuse');
	is(slurp("$workspace/file"), 'text', '... keeps all');
	is_deeply(
		$client->call('environmentReleaseLease', sandbox_params($id, %named, config => { reuseLease => JSON::PP::true }))
		  ->{result},
		{ outcome => 'released' }, 'so does one whose config says so');
	is(slurp("$workspace/file"), 'text', '... indeed');
	is_deeply($client->call('environmentReleaseLease', sandbox_params($id, %named))->{result},
		{ outcome => 'released' }, 'another release');
	is_deeply([ in_use($directory) ], [], '... leaves nothing');
	is_deeply($client->call('environmentDestroyLease', sandbox_params($id, %named))->{result},
		{ outcome => 'destroyed' }, 'a destroy afterwards is one');
	my $late = acquire($client, $id);
	is_error($late, '55000', qr/^the lease was ended meanwhile$/, 'an acquire that comes too late');
	is($late->{error}{data}{outcome}, 'absent', '... makes nothing');
	is_deeply([ in_use($directory) ], [], '... indeed');
	is_error($client->call('environmentResumeLease', sandbox_params($id, %named)),
		'55000', qr/ended meanwhile/, 'neither does a resume');
	is_deeply($host->stats->{sandboxes}, [], 'the statistics have forgotten it');
}
{
	my $id = lease_id();

	is_deeply($client->call('environmentDestroyLease', sandbox_params($id, providerLeaseId => undef))->{result},
		{ outcome => 'absent' }, 'a destroy of what was never made');
	is_error(acquire($client, $id), '55000', qr/ended meanwhile/, '... before its acquire');
	$id = lease_id();
	is_error($client->call('environmentResumeLease', sandbox_params($id, providerLeaseId => provider_id($id))),
		'38000', qr/^Lease \Q$id\E not found \x{2014} cannot resume$/, 'a resume of what does not exist');
	acquire($client, $id);
	is_deeply($client->call('environmentDestroyLease', sandbox_params($id, providerLeaseId => undef))->{result},
		{ outcome => 'destroyed' }, 'a destroy by the key alone');
	is_deeply([ in_use($directory) ], [], '... leaves nothing');
}
for my $bad ('sandbox://bubblewrap/../../etc', 'sandbox://fake/x', provider_id(lease_id()) . '/..', '')
{
	is_error($client->call('environmentDestroyLease', sandbox_params(lease_id(), providerLeaseId => $bad)),
		'22023', qr/^providerLeaseId /, "the name \"$bad\"");
}
for my $bad ('..', 'x', '../' . lease_id(), uc lease_id() . 'AAAA')
{
	is_error(acquire($client, $bad), '22023', qr/^leaseId is no uuid$/, "the key \"$bad\"");
}

# Everything at once, on one key: the last word is the destroy's.
for my $round (1 .. 20)
{
	my $id = lease_id();
	my @clients = map { $host->connect } 1 .. 6;
	my @calls = map {
		$clients[$_]->send_call($_ % 2 ? 'environmentDestroyLease' : 'environmentAcquireLease',
			sandbox_params($id, providerLeaseId => undef))
	} 0 .. 5;
	$_->close for @clients[ 0, 1 ];
	$clients[$_]->answer($calls[$_]) for 2 .. 5;
	my @left = in_use($directory);
	is_deeply(\@left, [], "round $round: nothing is left") if @left || $round == 20;
}

#######################################################################
# Removal of what a stranger has made
#######################################################################
{
	my $id = lease_id();
	my $outside = temporary_directory();

	spew("$outside/file", 'text');
	chmod 0755, $outside;
	acquire($client, $id);
	my $result = run_perl($client, $id, <<'PERL', arguments => [$outside], timeoutMs => 60000);
		my $outside = shift;
		symlink $outside, 'link' or die;
		symlink "$outside/file", 'filelink' or die;
		mkdir $_ or die for qw(a a/b a/b/c);
		symlink $outside, 'a/b/c/link';
		open my $f, '>', 'a/b/c/file'; close $f;
		chmod 0, 'a/b/c/file', 'a/b/c', 'a/b', 'a';
		system 'mkfifo', 'fifo'; mkdir "many"; for (1..2000) { open my $f, '>', "many/$_"; }
		use Socket; socket my $s, AF_UNIX, SOCK_STREAM, 0; bind $s, pack_sockaddr_un('socket') or die;
		mkdir "odd\nname \xff"; mkdir ' ';
		for (1 .. 3000) { mkdir 'deep' x 10 or die; chdir 'deep' x 10 or die; }
		print 'made';
PERL
	is($result->{stdout}, 'made', 'links, modes, depth, odd names') or diag(JSON::PP->new->encode($result));
	is_deeply(
		$client->call('environmentDestroyLease', sandbox_params($id, providerLeaseId => provider_id($id)), 120)->{result},
		{ outcome => 'destroyed' }, '... are removed');
	is_deeply([ in_use($directory) ], [], '... to the last');
	is(slurp("$outside/file"), 'text', '... but not what links point to');
	is((stat $outside)[2] & 07777, 0755, '... nor its mode');
}
{
	# What a crash has left is taken away by the next host.
	my $other = temporary_directory();
	mkdir "$other/$_" for qw(trash trash/x trash/x/y);
	spew("$other/trash/x/y/z", '');
	my $next = start_host(sandboxes => $other);
	acquire($next, lease_id());
	wait_until('the trash is empty', sub { !glob "$other/trash/*" });
	pass('trash that a crash has left');
	$next->terminate;
}

#######################################################################
# Commands
#######################################################################
my $id = lease_id();
acquire($client, $id);

{
	my $result = execute($client, $id, ['true']);
	is_deeply(
		[ @{$result}{qw(exitCode signal timedOut stdout stderr)} ],
		[ 0, undef, JSON::PP::false, '', '' ],
		'a command');
	is($result->{metadata}{stdoutBytes}, 0, '... says how much it wrote');

	my $wrong = 0;
	for my $code (0, 1, 2, 125 .. 160, 254, 255)
	{
		my $end = execute($client, $id, [ 'sh', '-c', "exit $code" ]);
		$wrong++ if !defined $end->{exitCode} || $end->{exitCode} != $code || defined $end->{signal};
	}
	is($wrong, 0, 'exit codes arrive as they are');
	for my $signal (qw(HUP KILL SEGV TERM))
	{
		my $end = execute($client, $id, [ 'sh', '-c', "kill -$signal \$\$" ]);
		is_deeply([ @{$end}{qw(exitCode signal)} ], [ undef, "SIG$signal" ], "ended by SIG$signal");
	}
	my $end = execute($client, $id, ['nosuchprogram']);
	is("$end->{exitCode} $end->{stderr}", "127 envrt: nosuchprogram: No such file or directory\n",
		'a program that does not exist');
	$end = execute($client, $id, ['/etc/passwd']);
	is("$end->{exitCode} $end->{stderr}", "126 envrt: /etc/passwd: Permission denied\n", '... that is none');
	is_error($client->call('environmentExecute', SandboxTest::execute_params($id, ['true'], cwd => '/nowhere')),
		'22023', qr/^cwd "\/nowhere" does not exist in the environment$/, 'a directory that does not exist');
	mkdir "$directory/leases/$id/workspace/sub";
	is(output_of($client, $id, 'pwd', cwd => 'sub'), "/workspace/sub\n", 'a relative directory');
	is(output_of($client, $id, 'pwd', cwd => '/tmp'), "/tmp\n", 'an absolute one');
	is(output_of($client, $id, 'echo 1 >file; cat file'), "1\n", 'a file in the workspace');
	is(output_of($client, $id, 'cat file'), "1\n", '... is there for the next command');
	is(output_of($client, $id, 'echo 1 >/tmp/file; echo 1 >/dev/shm/file; ls /tmp'), "file\n", 'one in /tmp');
	is(output_of($client, $id, 'ls /tmp /dev/shm'), "/dev/shm:\n\n/tmp:\n", '... is not');
	is(output_of($client, $id, 'umask'), "0022\n", 'the umask');
	is(output_of($client, $id, 'printf x >/dev/stdout; printf y >>/proc/self/fd/1'), 'xy', 'its output can be opened');
	is(output_of($client, $id, 'cat', stdin => "a\nb"), "a\nb", 'stdin');
	is(output_of($client, $id, 'cat; echo end'), "end\n", 'no stdin');
	is(execute($client, $id, ['true'], stdin => 'x' x 1_000_000)->{exitCode}, 0, 'stdin that is not read');
	is(output_of($client, $id, 'getent passwd 1000 | cut -d: -f1,6; hostname; nproc >&2'),
		"sandbox:/workspace\nsandbox\n", 'its user and its host');
	is(output_of($client, $id, 'awk "BEGIN { print 1 }"'), "1\n", 'programs by way of alternatives');
}

# Bytes.
{
	srand 7;
	my @pools = (
		[ 0x20 .. 0x7e ], [ 1 .. 0x1f, 0x7f .. 0x9f ], [ 0xa0 .. 0x7ff ], [ 0x4e00 .. 0x9fff ],
		[ 0x1f300 .. 0x1f6ff ], [ 0x20000 .. 0x200ff, 0xe0001, 0xf0000 .. 0xf00ff, 0x10fff0 .. 0x10fffd ],
		[ map { ord } split //, q('"\\$`!*?~#&;|<>()[]{}-= ) . "\n\t" ]);
	my @arguments = ('', '-', '--', '-n', '-e', "\n", '--args', map {
		my $length = int rand 40;
		join '', map { my $pool = $pools[ rand @pools ]; chr $pool->[ rand @$pool ] } 1 .. $length;
	} 1 .. 1000);
	my $result = execute($client, $id,
		[ 'perl', '-e', 'print join "\0", @ARGV, ""', '--', @arguments ], encoding => 'base64');
	my $expected = join "\0", @arguments, '';
	utf8::encode($expected);
	ok(decode_base64($result->{stdoutBase64}) eq $expected, 'a thousand arguments of random text');

	my $bytes = join '', map { chr int rand 256 } 1 .. 500_000;
	$result = execute($client, $id, ['cat'], stdinBase64 => encode_base64($bytes, ''), encoding => 'base64');
	ok(decode_base64($result->{stdoutBase64}) eq $bytes, 'random bytes through stdin and stdout');
	$result = execute($client, $id, [ 'sh', '-c', 'cat >&2' ],
		stdinBase64 => encode_base64($bytes, ''), encoding => 'base64');
	ok(decode_base64($result->{stderrBase64}) eq $bytes, '... and stderr');
}
is(
	execute($client, $id, [ 'true', 'x' x 200_000 ])->{stderr},
	"envrt: true: Argument list too long\n",
	'an argument that the kernel does not take');

# The environment.
{
	my %options = (
		config => { env => { ONE => 'config', TWO => 'config' } },
		env => { TWO => 'command', SECRET => "s3cret-\x{e4}-value" });
	is(output_of($client, $id, 'env | sort', %options), <<'TEXT', 'the environment');
HOME=/workspace
LANG=C.UTF-8
LOGNAME=sandbox
ONE=config
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PWD=/workspace
SECRET=s3cret-ä-value
TMPDIR=/tmp
TWO=command
USER=sandbox
TEXT
	my $call = $client->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sleep', '54321' ], %options, env => { S => 'vErYs3cret' }));
	wait_until('it runs', sub { processes_with('54321') });
	my @seen = grep { (eval { slurp($_) } // '') =~ /vErYs3cret/ } glob '/proc/[0-9]*/cmdline';
	is_deeply(\@seen, [], 'values of env are in no arguments');
	my ($pid) = processes_with('54321');
	is(scalar(grep { (eval { slurp($_) } // '') =~ /vErYs3cret/ } grep { -r } glob '/proc/[0-9]*/environ'),
		1, '... and in the environment of the command alone');
	kill 'KILL', $pid;
	is($client->answer($call)->{result}{signal}, 'SIGKILL', 'killed from outside');
}

#######################################################################
# Time
#######################################################################
{
	my $took = elapsed(sub {
		my $result = execute($client, $id, [ 'sh', '-c', 'echo before; sleep 54321' ], timeoutMs => 300);
		is_deeply(
			[ @{$result}{qw(exitCode signal timedOut stdout)} ],
			[ undef, 'SIGTERM', JSON::PP::true, "before\n" ],
			'a command whose time is over');
	});
	cmp_ok($took, '<', 2, '... ends');
	is_gone('54321', '... with all that it has started');
	my $result = execute($client, $id, [ 'sh', '-c', 'trap "echo cleaning; exit 3" TERM; sleep 54321 & wait' ],
		timeoutMs => 300);
	is_deeply([ @{$result}{qw(exitCode signal timedOut stdout)} ], [ undef, undef, JSON::PP::true, "cleaning\n" ],
		'one that cleans up');
	$took = elapsed(sub {
		$result = execute($client, $id, [ 'sh', '-c', 'trap "" TERM; while :; do sleep 54321; done' ],
			timeoutMs => 200, limits => { graceMs => 300 });
	});
	is_deeply([ @{$result}{qw(exitCode signal timedOut)} ], [ undef, 'SIGKILL', JSON::PP::true ],
		'one that ignores SIGTERM');
	cmp_ok($took, '<', 3, '... ends as well');
	is_gone('54321', '... with all that it has started');
	$result = execute($client, $id, [ 'sleep', '54321' ], limits => { callMs => 200 });
	ok($result->{timedOut}, 'without a time limit of its own it has the call\'s');
}
{
	my $result;
	my $took = elapsed(sub {
		$result = run_perl($client, $id,
			'exit if fork; use POSIX; POSIX::setsid(); exit if fork; open STDOUT, ">/dev/null"; exec "sleep", "54321"');
	});
	is($result->{exitCode}, 0, 'a command that leaves a daemon');
	cmp_ok($took, '<', 5, '... ends when it ends');
	is_gone('54321', '... and takes it along');
	$took = elapsed(sub { $result = run_perl($client, $id, 'if (!fork) { exec "sleep", "54321" } print "x"') });
	is($result->{stdout}, 'x', 'one whose child keeps the pipes open');
	cmp_ok($took, '<', 5, '... ends when it ends');
	$result = run_perl($client, $id, 'close STDOUT; close STDERR; close STDIN; select undef, undef, undef, 0.5; exit 7');
	is($result->{exitCode}, 7, 'one that closes its pipes and lives on');
}

# What goes through processes that outlive the command
{
	my @bash = ('bash', '-c');
	my $result = execute($client, $id, [ @bash, 'exec > >(tee log) 2>&1; echo one; echo two; exit 3' ]);

	is($result->{stdout}, "one\ntwo\n", 'output by way of a process substitution');
	is($result->{exitCode}, 3, '... with the command\'s own exit code');
	$result = execute($client, $id, [ @bash, 'exec 2> >(sed s/^/error:/ >&2); echo fire >&2; exit 4' ]);
	is("$result->{stderr}$result->{exitCode}", "error:fire\n4", '... and of stderr alone');
	$result = execute($client, $id, [ 'sh', '-c', '(sleep 0.3; echo late) & kill -9 $$' ]);
	is("$result->{stdout}$result->{signal}", "late\nSIGKILL", 'a background process that writes after the command\'s end');
	$result = execute($client, $id, [ 'sh', '-c', 'sleep 54321 & echo x' ], limits => { drainMs => 0 });
	is("$result->{stdout}$result->{exitCode}", "x\n0", 'one that holds the output for longer than is waited');
	is_gone('54321', '... is ended');
	$result = execute($client, $id, [ 'sh', '-c', 'sleep 54321 & exit 5' ], timeoutMs => 500, limits => { drainMs => 60000 });
	ok(!$result->{timedOut}, '... and by the time limit, which the command has kept');
	is($result->{exitCode}, 5, '... so that it has its exit code');
	$result = execute($client, $id,
		[ 'sh', '-c', q{perl -e '@x = map { "x" x (1 << 20) . $_ } 1 .. 150; sleep 60' & perl -e '@x = map { "x" x (1 << 20) . $_ } 1 .. 150; sleep 60' & exit 6} ],
		config => { memoryMb => 200 }, limits => { drainMs => 60000 });
	is($result->{exitCode}, 6, '... and by the limit of memory');

	# A client that does not read is no reason to drop what is on its way.
	my $reader = $host->connect;
	my $writer = q{use Fcntl; open F, ">", "written"; fcntl(STDOUT, F_SETFL, O_NONBLOCK);
		my ($n, $full) = (0, 0);
		while ($full < 20) { my $w = syswrite(STDOUT, "y" x 512); if ($w) { $n += $w; $full = 0 } else { $full++; select undef, undef, undef, 0.02 } }
		print F $n};
	my $call = $reader->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ @bash, 'exec > >(cat); perl -e "$0" 54327', $writer ],
			stream => JSON::PP::true, timeoutMs => 60000, limits => { drainMs => 1000 }));
	my $file = "$directory/leases/$id/workspace/written";
	wait_until('the command has ended', sub { -s $file && !processes_with('54327') });
	select undef, undef, undef, 1.5;
	is($reader->answer($call)->{result}{exitCode}, 0, 'a command whose reader is slow');
	is(length streamed($reader, $call, 'stdout'), slurp($file), '... has all of its output in the end');
}

# The first and the last half of what is too long
{
	my $all = join '', map { "$_\n" } 1 .. 30000;
	my ($result, $metadata);
	my $kept = sub {
		my ($bytes) = @_;
		return substr($bytes, 0, $metadata->{stdoutMissingAt}) . substr($bytes, $metadata->{stdoutMissingAt} + $metadata->{stdoutMissingBytes});
	};

	for my $most (1000, 1001, 70000)
	{
		$result = execute($client, $id, [ 'seq', '30000' ], limits => { maxOutput => $most });
		$metadata = $result->{metadata};
		like($result->{stdout}, qr/^1\n2\n.*\n30000\n\z/s, "$most bytes of a long output: its beginning and its end");
		is(length $result->{stdout}, $most, '... are kept');
		ok($result->{stdout} eq $kept->($all), '... and it is told what is missing');
		ok($metadata->{stdoutTruncated}, '... in so many words');
	}
	$result = execute($client, $id, [ 'seq', '30000' ], limits => { maxOutput => 1001 }, encoding => 'base64');
	$metadata = $result->{metadata};
	is(decode_base64($result->{stdoutBase64}), $kept->($all), '... and the same of bytes');
	$result = execute($client, $id, [ 'seq', '30000' ], limits => { maxOutput => length $all });
	ok($result->{stdout} eq $all && !$result->{metadata}{stdoutTruncated}, 'what just fits is whole');
	$result = execute($client, $id, [ 'seq', '3' ], limits => { maxOutput => 1 });
	is($result->{stdout}, '1', 'of a byte there is no half');

	for my $most (100 .. 105)
	{
		$result = execute($client, $id, [ 'perl', '-e', 'print "\xe2\x82\xac" x 1000' ], limits => { maxOutput => $most });
		$metadata = $result->{metadata};
		like($result->{stdout}, qr/^\x{20ac}+\z/, "$most bytes of longer characters: none is cut");
		is(length($result->{stdout}) * 3 + $metadata->{stdoutMissingBytes}, 3000, '... and all are accounted for');
	}
	# In JSON each of these is six bytes.
	$result = execute($client, $id, [ 'perl', '-e', 'print "A", "\1" x 3_000_000, "Z"' ], limits => { maxOutput => 5_000_000 });
	like($result->{stdout}, qr/^A\x01+Z\z/, 'what gets too long for an answer');
	is(length($result->{stdout}) + $result->{metadata}{stdoutMissingBytes}, 3_000_002, '... is cut in the same way');
}
{
	my $leaver = $host->connect;
	$leaver->send_call('environmentExecute', SandboxTest::execute_params($id, [ 'sleep', '54322' ]));
	wait_until('it runs', sub { processes_with('54322') });
	is((grep { $_->{leaseId} eq $id } @{ $host->stats->{sandboxes} })[0]{commands}, 1, 'a command that runs is counted');
	$leaver->close;
	is_gone('54322', 'the command of a client that is gone');
	$leaver = $host->connect;
	$leaver->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', 'trap "" TERM; while :; do sleep 54322; done' ],
			limits => { graceMs => 200 }));
	wait_until('it runs', sub { processes_with('54322') });
	$leaver->close;
	is_gone('54322', '... also when it ignores SIGTERM');
	$leaver = $host->connect;
	$leaver->send_call('environmentExecute', SandboxTest::execute_params($id, [ 'sleep', '54322' ]));
	$leaver->close;
	is_gone('54322', '... also before it has begun');
	# At any point of the making.
	for my $delay (1 .. 60)
	{
		$leaver = $host->connect;
		$leaver->send_call('environmentExecute', SandboxTest::execute_params($id, [ 'sleep', '54322' ]));
		sleep $delay / 4000;
		$leaver->close;
	}
	is_gone('54322', '... and while the sandbox is being made');
	wait_until('nothing is counted',
		sub { !(grep { $_->{commands} } @{ $host->stats->{sandboxes} }) });
	pass('nothing is counted any more');
}

#######################################################################
# Streams, and calls that are cancelled
#######################################################################
{
	my $reader = $host->connect;
	my %stream = (stream => JSON::PP::true, timeoutMs => 60000);
	my $call = $reader->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', 'echo one; sleep 0.6; echo two >&2; exit 3' ], %stream));
	my $result = $reader->answer($call)->{result};
	is($result->{exitCode}, 3, 'a command whose output is streamed');
	ok(!exists $result->{stdout}, '... has none in its result');
	is(streamed($reader, $call, 'stdout') . streamed($reader, $call, 'stderr'), "one\ntwo\n", '... but before');
	my @times = map { $_->{time} } @{ $reader->{notifications} };
	cmp_ok($times[-1] - $times[0], '>', 0.4, '... as it comes');

	my $size = 20_000_000;
	$call = $reader->send_call('environmentExecute',
		SandboxTest::execute_params($id,
			[ 'perl', '-e', 'open F, ">", "count"; F->autoflush; for (1..2000) { syswrite STDOUT, chr(65 + $_ % 26) x 10000; syswrite F, "." } print STDERR "end"' ],
			%stream));
	sleep 1.5;
	my $written = (-s "$directory/leases/$id/workspace/count") * 10000;
	cmp_ok($written, '<', 4_000_000, 'a client that does not read makes the command wait');
	$result = $reader->answer($call)->{result};
	is($result->{exitCode}, 0, '... until it does');
	ok(streamed($reader, $call, 'stdout') eq join('', map { chr(65 + $_ % 26) x 10000 } 1 .. 2000), '... and then has all');

	$call = $reader->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', 'echo x; sleep 54326' ], %stream));
	wait_until('it runs', sub { processes_with('54326') });
	my $cancel = $reader->send_call('envrt/cancel', { id => $call });
	is_error($reader->answer($call), '57014', qr/./, 'a call that is cancelled');
	ok(exists $reader->answer($cancel)->{result}, '... by the same connection');
	is_gone('54326', '... ends its command');
}

#######################################################################
# The end of the lease, and of the host
#######################################################################
{
	my $other = lease_id();
	acquire($client, $other);
	my $call = $client->send_call('environmentExecute',
		SandboxTest::execute_params($other, [ 'sh', '-c', 'trap "" TERM; while :; do echo x >f; sleep 54323; done' ]));
	wait_until('it runs', sub { processes_with('54323') });
	is_deeply($host->call('environmentDestroyLease', sandbox_params($other, providerLeaseId => provider_id($other)))->{result},
		{ outcome => 'destroyed' }, 'a destroy of a lease in which something runs');
	is_deeply([ processes_with('54323') ], [], '... ends that first');
	ok(!-e "$directory/leases/$other", '... and leaves nothing');
	is_error($client->answer($call), '55000', qr/^the lease was ended meanwhile$/, '... of which the caller is told');
	is_error($client->call('environmentExecute', SandboxTest::execute_params($other, ['true'])),
		'55000', qr/ended meanwhile/, '... and no command runs any more');
	is_error($client->call('environmentExecute', SandboxTest::execute_params(lease_id(), ['true'])),
		'55000', qr/is gone$/, 'nor in a lease that was never made');
}
{
	# A crowd.
	my $size = $ENV{ENVRT_DRIVER_HOST} ? 50 : 200;
	my @ids = map { lease_id() } 1 .. $size;
	my @clients = map { $host->connect } @ids;
	my @calls = map { $clients[$_]->send_call('environmentAcquireLease', sandbox_params($ids[$_])) } 0 .. $#ids;
	my $good = grep { $clients[$_]->answer($calls[$_])->{result} } 0 .. $#ids;
	is($good, $size, "$size leases at once");
	@calls = map {
		$clients[$_]->send_call('environmentExecute',
			SandboxTest::execute_params($ids[$_], [ 'sh', '-c', "echo $_ >file; sleep 1; cat file" ], timeoutMs => 100000))
	} 0 .. $#ids;
	$good = grep { ($clients[$_]->answer($calls[$_], 120)->{result}{stdout} // '') eq "$_\n" } 0 .. $#ids;
	is($good, $size, '... and a command in each');
	@calls = map {
		$clients[$_]->send_call('environmentDestroyLease', sandbox_params($ids[$_], providerLeaseId => undef))
	} 0 .. $#ids;
	$good = grep { ($clients[$_]->answer($calls[$_])->{result}{outcome} // '') eq 'destroyed' } 0 .. $#ids;
	is($good, $size, '... and their end');
	is_deeply([ in_use($directory) ], [$id], '... leave nothing');
}
is($host->log_text, '', 'there was nothing to complain about');
{
	my $other = start_host(sandboxes => $directory);
	acquire($other, $id);
	my $c = $other->connect;
	$c->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', 'trap "" TERM HUP; setsid sleep 54324 & sleep 54324' ]));
	wait_until('it runs', sub { processes_with('54324') == 2 });
	my @bwrap = children_of($other->{pid});
	is(@bwrap, 1, 'it is bwrap that runs');
	kill 'KILL', $other->{pid};
	is_gone('54324', 'the end of the host is the end of all that it runs');
	wait_until('bwrap is gone', sub { !-e "/proc/$bwrap[0]" });
	pass('... and of bwrap');
	waitpid $other->{pid}, 0;
	EnvrtFixture::unregister($other);

	$other = start_host(sandboxes => $directory);
	is(output_of($other, $id, 'cat file'), "1\n", 'its leases are there for the next host');
	$c = $other->connect;
	$c->send_call('environmentExecute',
		SandboxTest::execute_params($id, [ 'sh', '-c', 'trap "" TERM HUP; while :; do sleep 54325; done' ]));
	wait_until('it runs', sub { processes_with('54325') });
	is($other->terminate, 0, 'a host ends in order while something runs');
	is_deeply([ processes_with('54325') ], [], '... and ends it first');
}

#######################################################################
# Config, images, and when there are no sandboxes
#######################################################################
{
	my %bad = (
		'network' => [ { network => JSON::PP::true }, qr/no network/ ],
		'memoryMb' => [ { memoryMb => 1 }, qr/^memoryMb: / ],
		'unknown' => [ { unknown => 1 }, qr/unknown/ ],
		'env' => [ { env => { 'a-b' => 'x' } }, qr/^(env: )?Invalid environment variable key: a-b/ ],
		'a secret that nobody resolved' => [ { env => { A => { type => 'secret_ref' } } }, qr/^env\.A: / ],
		map { ("image \"$_\"" => [ { image => $_ }, qr/image/i ]) } '..', '.', 'a/b', '/etc', '', '.hidden', "a\n");
	for my $name (sort keys %bad)
	{
		my $shown = $name =~ s/\n/\\n/r;
		is_error(acquire($client, lease_id(), config => $bad{$name}[0]), '22023', $bad{$name}[1], "config: $shown");
		is_error($client->call('environmentExecute', SandboxTest::execute_params($id, ['true'], config => $bad{$name}[0])),
			'22023', $bad{$name}[1], "... for a command");
	}
	my $answer = $client->call('environmentValidateConfig', sandbox_params(undef, config => { memoryMb => 64 }))->{result};
	ok($answer->{ok} && $answer->{normalizedConfig}{memoryMb} == 64, 'a config that is valid');
	$answer = $client->call('environmentValidateConfig', sandbox_params(undef, config => { memoryMb => 'x' }))->{result};
	ok(!$answer->{ok} && $answer->{errors}[0] =~ /memoryMb/, 'one that is not');
	is_error(acquire($client, lease_id(), config => { image => 'none' }),
		'22023', qr/^there is no image "none"/, 'an image that does not exist');
	$answer = $client->call('environmentProbe', sandbox_params(undef))->{result};
	ok($answer->{ok}, 'a probe') or diag(JSON::PP->new->encode($answer));
	$answer = $client->call('environmentProbe', sandbox_params(undef, config => { image => 'none' }))->{result};
	ok(!$answer->{ok}, '... of an image that does not exist');
	like($answer->{summary}, qr/there is no image "none"/, '... says so');
}
{
	# An image with a shell and little else.
	my $image = "$directory/images/small";
	system('mkdir', '-p', "$image/usr/bin", "$image/etc", "$image/private") == 0 or die;
	symlink 'usr/bin', "$image/bin";
	spew("$image/etc/name", "small\n");
	for my $file ('/bin/dash', '/bin/cat', '/bin/ls', '/bin/true', map { m{(/\S+) \(0x} ? $1 : () } split /\n/,
		`ldd /bin/dash /bin/cat /bin/ls`)
	{
		my $target = $file =~ m{^(?:/usr)?/bin/} ? '/usr/bin' : $file =~ s{/[^/]+$}{}r;
		system('mkdir', '-p', "$image$target") == 0 && system('cp', '-L', $file, "$image$target/") == 0 or die;
	}
	rename "$image/usr/bin/dash", "$image/usr/bin/sh";
	my $other = lease_id();
	my %small = (config => { image => 'small' });
	is(acquire($client, $other, %small)->{result}{metadata}{image}, 'small', 'a lease with an image');
	is(output_of($client, $other, 'cat /etc/name', %small), "small\n", 'a command in it');
	is(output_of($client, $other, 'ls /', %small) =~ s/lib\S*\n//gr, "bin\ndev\netc\nprivate\nproc\ntmp\nusr\nworkspace\n",
		'... sees nothing else');
	like(execute($client, $other, [ 'sh', '-c', 'echo x >/etc/name' ], %small)->{stderr}, qr/Read-only file system/,
		'... and can\'t change it');
	is(execute($client, $other, ['perl'], %small)->{exitCode}, 127, '... and has no other programs');
	my ($row) = grep { $_->{leaseId} eq $other } @{ $host->stats->{sandboxes} };
	is($row->{image}, 'small', 'the statistics know the image');
	ok($client->call('environmentProbe', sandbox_params(undef, %small))->{result}{ok}, 'a probe of it');
	$client->call('environmentDestroyLease', sandbox_params($other));
}
{
	my $off = start_host();
	my %calls = (
		environmentAcquireLease => sandbox_params(lease_id()),
		environmentResumeLease => sandbox_params(lease_id()),
		environmentReleaseLease => sandbox_params(lease_id()),
		environmentDestroyLease => sandbox_params(lease_id()),
		environmentListLeases => sandbox_params(lease_id()),
		environmentExecute => SandboxTest::execute_params(lease_id(), ['true']));
	for my $method (sort keys %calls)
	{
		my $answer = $off->call($method, $calls{$method});
		is_error($answer, '55000', qr/^sandboxes are off$/, "$method without a sandbox directory");
		like($answer->{error}{data}{hint}, qr/^Set envrt\.sandbox_directory to an absolute path on another file system/,
			'... with a hint');
	}
	my $answer = $off->call('environmentProbe', sandbox_params(undef))->{result};
	ok(!$answer->{ok} && $answer->{summary} =~ /sandboxes are off/, 'a probe');
	$off->terminate;

	my $data = temporary_directory();
	my $sandboxes = temporary_directory();
	my %settings = (sandboxDirectory => $sandboxes, dataDirectory => $data);
	my $same = start_host(control => \%settings);
	$answer = acquire($same, lease_id());
	is_error($answer, '55000', qr/^sandboxes are off$/, 'on the data directory\'s file system');
	like($answer->{error}{data}{detail}, qr/file system/, '... with the reason');
	$same->configure(%settings, sandboxOnDataFileSystem => JSON::PP::true);
	ok(acquire($same, lease_id())->{result}, '... unless that is accepted');
	$same->configure(%settings, sandboxOnDataFileSystem => JSON::PP::true, sandboxDirectory => undef);
	is_error(acquire($same, lease_id()), '55000', qr/off/, 'switched off again');
	$same->configure(%settings, sandboxOnDataFileSystem => JSON::PP::true, sandboxDirectory => "$data/none");
	is_error(acquire($same, lease_id()), '55000', qr/off/, 'a directory that does not exist');
	chmod 0777, $sandboxes;
	$same->configure(%settings, sandboxOnDataFileSystem => JSON::PP::true);
	is_error(acquire($same, lease_id()), '55000', qr/off/, 'a directory to which anybody can write');
	$same->terminate;
}

# What bwrap says when it makes no sandbox is shown without what the command was given.
{
	my $directory = temporary_directory();
	my $fake = temporary_directory();
	my $program = $ENV{ENVRT_DRIVER_HOST} // "$top/envrt_driver_host";

	spew("$fake/bwrap", "#!/bin/sh\n{ printf 'bwrap: no room for '; tr -s '\\0' ' ' </proc/self/fd/7; cat; } | tr '\\n' ' ' >&2\nexit 1\n", 0755);
	spew("$fake/host", qq{#!/bin/sh\nexec unshare -Urm sh -c 'mount --bind $fake /usr/local/bin && exec "\$0" "\$@"' $program "\$@"\n}, 0755);
	my $poor = start_host(sandboxes => $directory, program => "$fake/host");
	my $reader = $poor->connect;
	my $id = lease_id();
	acquire($reader, $id);
	my %given = (env => { TOKEN => 'value-of-env' }, stdin => 'input-of-a-command', config => { env => { KEY => 'value-of-config' } });
	for my $stream (0, 1)
	{
		my $answer = $reader->call('environmentExecute',
			SandboxTest::execute_params($id, [ 'tool', 'argument-of-a-command' ], %given, $stream ? (stream => JSON::PP::true) : ()));
		is_error($answer, '38000', qr/^the sandbox could not be made: bwrap: no room for .*tool \*{21} .*KEY=\*{15} TOKEN=\*{12} \*{18}/, 'a sandbox that can\'t be made');
		unlike(JSON::PP->new->encode($answer), qr/(?:value|input|argument)-of/, '... and nothing shows');
	}
	is($reader->{notifications}, undef, '... nor comes as what the command wrote');
	$poor->terminate;
}

is($host->terminate, 0, 'the host ends in order');
done_testing();
