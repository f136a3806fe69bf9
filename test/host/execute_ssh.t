#!/usr/bin/perl
# environmentExecute over ssh: commands arrive as they are, end when they should, and leave nothing.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use MIME::Base64 qw(decode_base64 encode_base64);
use Test::More;

my $keys = EnvrtFixture::Keys->shared;
my $sshd = EnvrtFixture::Sshd->new(keys => $keys)->start;
my $host = start_host(control => {});
my $sanitized = ($ENV{ENVRT_DRIVER_HOST} // '') =~ /address/;
my $scratch = temporary_directory();

# Options: server, company, limits; the rest are params.
sub params
{
	my ($command, $args, %options) = @_;
	my $server = delete $options{server} // $sshd;
	my $company = delete $options{company} // 'company-1';
	my $limits = delete $options{limits} // {};
	my $base = HostTest::request(ssh_config($server), company => $company);

	return {
		%$base,
		command => $command,
		args => $args,
		lease => {
			providerLeaseId => 'ssh://somewhere',
			metadata => { remoteCwd => "$server->{directory}/home" }
		},
		%options,
		limits => { callMs => 30000, connectMs => 10000, %$limits }
	};
}

sub execute
{
	my (@call) = @_;

	return $host->call('environmentExecute', params(@call));
}

sub result
{
	my (@call) = @_;
	my $answer = execute(@call);

	diag(JSON::PP->new->encode($answer)) if !$answer->{result};
	return $answer->{result} // {};
}

sub sh
{
	my ($script, %options) = @_;

	return ('sh', [ '-c', $script ], %options);
}

# Pids of processes that have a text in their arguments.
sub running
{
	my ($text) = @_;
	my @found;

	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		my ($pid) = $file =~ /(\d+)/;
		my $line = eval { slurp($file) } // next;

		push @found, $pid if $pid != $$ && index($line, $text) >= 0;
	}
	return @found;
}

# A number of seconds that no other sleep has.
my $nights = 100000 + $$;

sub night
{
	return ++$nights . '.5';
}

sub gone
{
	my ($night, $name) = @_;
	my $gone = eval { wait_until("$night is over", sub { !running($night) }, 10); 1 };

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($gone, $name) or kill 'KILL', running($night);
	return;
}

#######################################################################
# The answer
#######################################################################
my $answer = execute('echo', ['hello']);
my $metadata = delete $answer->{result}{metadata};
is_deeply(
	$answer->{result},
	{ exitCode => 0, signal => undef, timedOut => JSON::PP::false, stdout => "hello\n", stderr => '' },
	'a command');
like(delete $metadata->{durationMs}, qr/^\d+$/, '... its duration');
is_deeply($metadata, { stdoutBytes => 6, stderrBytes => 0 }, '... and what it wrote');
my $result = result(sh('echo out; echo error >&2; exit 7'));
is_deeply([ @$result{qw(exitCode stdout stderr)} ], [ 7, "out\n", "error\n" ], 'a status and both streams');
for my $signal (qw(KILL TERM SEGV USR1))
{
	$result = result(sh("kill -$signal \$\$"));
	is_deeply([ @$result{qw(exitCode signal timedOut)} ], [ undef, "SIG$signal", JSON::PP::false ], "a SIG$signal");
}
is(result(sh('exit 143'))->{exitCode}, 143, 'a status is not taken for a signal');
$result = result(sh('kill -BUS $$'));
is($result->{signal}, 'SIGUNKNOWN', 'a signal that the protocol has no name for');
$result = result('no-such-command', []);
is($result->{exitCode}, 127, 'a command that is not there');
like($result->{stderr}, qr/no-such-command/, '... and the words for it');
is(result('/etc/passwd', [])->{exitCode}, 126, 'a command that is none');
is(result('-x', [])->{exitCode}, 127, 'a command with a dash');

# Directories.
my $home = "$sshd->{directory}/home";
is(result('pwd', [])->{stdout}, "$home\n", "the lease's directory");
mkdir "$home/it's a place";
is(result('pwd', [], cwd => "$home/it's a place")->{stdout}, "$home/it's a place\n", 'another one');
is(result('pwd', [], cwd => "it's a place")->{stdout}, "$home/it's a place\n", 'a relative one');
mkdir "$home/workspace";
is(result('pwd', [], lease => { metadata => undef })->{stdout}, "$home/workspace\n", 'the workspace otherwise');
is_error(execute('pwd', [], cwd => '/no/such'), '22023',
	qr{^cwd "/no/such" does not exist in the environment$}, 'a directory that is not there');

# Params.
is_error(execute(undef, []), '22023', qr/^command must/, 'no command');
is_error(execute('', []), '22023', qr/^command must/, 'an empty one');
is_error(execute("a\0b", []), '22023', qr/^command must not hold a NUL/, 'a command with NUL');
is_error(execute('a', [ 'b', "c\0" ]), '22023', qr/^args\[1\] must not hold a NUL/, 'an argument with NUL');
is_error(execute('a', 'b'), '22023', qr/^args must be a list/, 'args that are none');
is_error(execute('a', [], env => { 'A B' => 'x' }), '22023', qr/^Invalid environment variable key: A B$/, 'a bad name');
is_error(execute('a', [], env => { '1A' => 'x' }), '22023', qr/^Invalid environment variable key: 1A$/, 'another');
is_error(execute('a', [], env => { '' => 'x' }), '22023', qr/^Invalid environment variable key:$/, 'an empty one');
is_error(execute('a', [], env => { A => "s3cret\0" }), '22023', qr/^env\.A must not hold a NUL character$/,
	'a value with NUL');
is_error(execute('a', [], env => { A => undef }), '22023', qr/^env\.A must be a string$/, 'a value that is none');
is_error(execute('a', [], cwd => ''), '22023', qr/^cwd must not be empty/, 'an empty cwd');
is_error(execute('a', [], stdin => 'x', stdinBase64 => 'eA=='), '22023', qr/^stdin and stdinBase64/, 'two stdins');
is_error(execute('a', [], stdinBase64 => 'x!'), '22023', qr/^stdinBase64 is not base64/, 'no base64');
is_error(execute('a', [], encoding => 'latin1'), '22023', qr/^encoding must be/, 'an unknown encoding');
is_error(execute('a', [], timeoutMs => -1), '22023', qr/^timeoutMs must be/, 'a negative time');
is_error(execute('a', [ 'x' x 4200000 ]), '54000', qr/^command, args and env together must not be longer than/, 'more than a call may carry');
is(result('true', [ 'x' x 1900000 ])->{exitCode}, 126, 'more than a system can take');

# Text.
$result = result('printf', ['a\377\000b\342\202\254\355\240\200\n']);
is($result->{stdout}, "a\x{fffd}\x{fffd}b\x{20ac}\x{fffd}\x{fffd}\x{fffd}\n", 'what is no text is replaced');
is($result->{metadata}{stdoutBytes}, 11, '... and counted as it was');
$result = result('printf', ['abc\342\202\254'], limits => { maxOutput => 5 });
is($result->{stdout}, 'abc', 'a cut does not go through a character');
is_deeply(
	[ @{ $result->{metadata} }{qw(stdoutBytes stdoutTruncated stderrTruncated)} ],
	[ 6, JSON::PP::true, undef ],
	'... and is told');

#######################################################################
# Byte for byte, by any shell
#######################################################################
srand 42;

sub random_text
{
	my $kind = rand;

	return '' if $kind < 0.03;
	return ('-', '--', '-n', '-e', '--help')[ rand 5 ] if $kind < 0.06;
	return join '', map { ("'", '"', '\\', '$', '`', '!', "\n", '*', ' ', '~', '#', '^')[ rand 12 ] } 1 .. 1 + rand 20
	  if $kind < 0.3;
	return join '', map { chr(1 + rand 127) } 1 .. 1 + rand 40 if $kind < 0.5;
	return join '', map { chr random_code_point() } 1 .. 1 + rand 30;
}

sub random_code_point
{
	my $code_point;

	do
	{
		$code_point = (0x1 + rand 0x7ff, 0x800 + rand 0xf7ff, 0x10000 + rand 0xfffff)[ rand 3 ];
	} while ($code_point >= 0xd800 && $code_point < 0xe000 || $code_point >= 0x110000);
	return int $code_point;
}

sub hex_of
{
	my ($text) = @_;

	utf8::encode($text);
	return unpack 'H*', $text;
}

my @texts = map { random_text() } 1 .. 1000;
my $bytes = join '', map { chr } 0 .. 255;
$bytes .= join '', map { chr rand 256 } 1 .. 300000;
my $print_args = 'print map { unpack("H*", $_), "\n" } @ARGV';
my $print_env = 'print map { unpack("H*", $ENV{"V$_"}), "\n" } 0 .. 199';
my %env = map { ("V$_" => $texts[$_]) } 0 .. 199;

sub check_bytes
{
	my ($name, %options) = @_;
	my @lines = split /\n/, result($^X, [ '-e', $print_args, '--', @texts ], %options)->{stdout} // '', -1;
	my $wrong = grep { ($lines[$_] // 'none') ne hex_of($texts[$_]) } 0 .. $#texts;

	pop @lines;
	is(scalar @lines, 1000, "$name: 1,000 arguments");
	is($wrong, 0, '... as they were');
	@lines = split /\n/, result($^X, [ '-e', $print_env ], env => \%env, %options)->{stdout} // '';
	$wrong = grep { ($lines[$_] // 'none') ne hex_of($texts[$_]) } 0 .. 199;
	is($wrong, 0, '... variables');
	my $back = result('cat', [], stdinBase64 => encode_base64($bytes, ''), encoding => 'base64', %options);
	ok(decode_base64($back->{stdoutBase64} // '') eq $bytes, '... and bytes through stdin and stdout');
	$back = result('sh', [ '-c', 'echo "$1" >&2; cat', 'sh', "\x{e9}" ], stdinBase64 => encode_base64("\n\0x", ''), encoding => 'base64', %options);
	is(decode_base64($back->{stdoutBase64} // ''), "\n\0x", '... a few bytes');
	is(decode_base64($back->{stderrBase64} // ''), "\xc3\xa9\n", '... with an argument that is not ASCII');
	is(result('wc', ['-c'], %options)->{stdout}, "0\n", '... no stdin is an empty one');
	$back = result(sh('echo noise; exit 3'), %options);
	is_deeply([ @$back{qw(exitCode stdout stderr)} ], [ 3, "noise\n", '' ], '... and nothing but its own output');
	return;
}

check_bytes('the usual shell');

# As the login shell, a forced command runs what was asked for by another one; sh may be another one, too.
mkdir "$scratch/bin-$_" for qw(bash dash);
symlink "/bin/$_", "$scratch/bin-$_/sh" for qw(bash dash);
my @shells = grep { -x "/bin/$_->[0]" && -x "/bin/$_->[1]" }
  ([ 'sh', 'dash' ], [ 'dash', 'dash' ], [ 'bash', 'bash' ], [ 'dash', 'bash' ], [ 'zsh', 'dash' ], [ 'fish', 'dash' ], [ 'tcsh', 'dash' ]);
for my $pair (@shells)
{
	my ($login, $sh) = @$pair;
	my $force = "ForceCommand PATH=$scratch/bin-$sh:\$PATH exec /bin/$login -c \"\$SSH_ORIGINAL_COMMAND\"";
	my $server = EnvrtFixture::Sshd->new(keys => $keys, extra => [$force])->start;

	check_bytes("$login, and $sh as sh", server => $server);
	$server->stop;
}

# For bash, which reads one or the other.
sub by_profile
{
	my ($home) = @_;

	return qq(SetEnv "HOME=$home" "BASH_ENV=$home/.bashrc");
}

# Whatever a profile does, the command is started as it is, or not at all and with an error that says why.
SKIP:
{
	my $shell = (getpwuid $>)[8];

	skip "the login shell is $shell", 1 if $shell !~ m{^(?:/usr)?/bin/bash$};
	my $profile_home = "$scratch/profile";
	mkdir $profile_home;
	my $server = EnvrtFixture::Sshd->new(keys => $keys, extra => [by_profile($profile_home)])->start;
	my $lines = sub { my $count = () = (eval { slurp("$scratch/$_[0]") } // '') =~ /\n/g; return $count };
	my $secret = "hidden-$$-" . time;
	my $with_profile = sub {
		my ($profile, $command, $args, %options) = @_;

		spew("$profile_home/.bashrc", $profile);
		return execute($command, $args, server => $server, limits => { connectMs => 1500 }, env => { TOKEN => $secret }, %options);
	};
	my @run = sh("echo run >>$scratch/runs; echo out; echo error >&2; exit 3");

	for my $harmless (
		[ 'takes a line of its input', "read -t 0.3 line\n" ],
		[ 'takes a line and prints it', "read -t 0.3 line; echo \"Unknown choice: \$line\" | tee /dev/stderr\n" ],
		[ 'traces', "set -x; export SHELLOPTS\n" ],
		[ 'traces to stdout', "BASH_XTRACEFD=1; export BASH_XTRACEFD; set -x; export SHELLOPTS\n" ],
		[ 'shows what it reads', "set -v; export SHELLOPTS\n" ],
		[ 'stops at errors', "set -euf -o pipefail; export SHELLOPTS\n" ],
		[ 'exports functions', join '', map { "$_() { builtin echo function; }; export -f $_\n" } qw(cd echo kill read head rm sleep c x l o s) ],
		[ 'exports our names', "export envrt_m=a envrt_l=b envrt_g=c envrt_h=d envrt_f=/nowhere\n" ],
		[ 'has another IFS and CDPATH', "export IFS=aeiou/- CDPATH=/\n" ],
		[ 'is silenced', qq(function echo { builtin echo "\$@" >>$scratch/said; }; readonly -f echo\n) ])
	{
		my ($name, $profile) = @$harmless;
		my $before = $lines->('runs');
		my $answer = $with_profile->($profile, @run);

		is_deeply([ @{ $answer->{result} // {} }{qw(exitCode stdout stderr)} ], [ 3, "out\n", "error\n" ], "a profile that $name") or diag explain $answer;
		is($lines->('runs') - $before, 1, '... runs it once');
		$answer = $with_profile->($profile, 'sh', [ '-c', 'printf "%s|" "$TOKEN" "$@"; cat', 'sh', 'a b', "it's\n" ], stdin => "in\n");
		is($answer->{result}{stdout}, "$secret|a b|it's\n|in\n", '... as it is');
	}
	my $before = $lines->('runs');
	for my $harmful (
		[ 'reads all its input', "cat >/dev/null\n" ],
		[ 'prints all its input', "cat\n" ],
		[ 'sends its output elsewhere', "exec >/dev/null\n" ],
		[ 'sends its errors elsewhere', "exec 2>/dev/null\n" ],
		[ 'makes one of both', "exec 2>&1\n" ],
		[ 'swaps both', "exec 3>&1 >&2 2>&3\n" ],
		[ 'closes its output', "exec >&-\n" ],
		[ 'sleeps', "sleep 100\n" ])
	{
		my ($name, $profile) = @$harmful;
		my $answer = $with_profile->($profile, @run);

		is_error($answer, '08006', qr/timed out after 1500 ms while waiting for the login shell to be ready$/, "a profile that $name");
		like($answer->{error}{data}{hint} // '', qr/login profile of "\Q@{[$server->user]}\E"/, '... is named');
		unlike(JSON::PP->new->encode($answer), qr/\Q$secret\E/, '... and no secret');
	}
	for my $ended ([ 'has no input', "exec </dev/null\n" ], [ 'closes its input', "exec <&-\n" ], [ 'ends', "echo Closed for today. >&2; exit 4\n" ])
	{
		my ($name, $profile) = @$ended;

		is_error($with_profile->($profile, @run), '38000', qr/the command was not started \(status \d\)/, "a profile that $name");
	}
	is($lines->('runs'), $before, '... nothing has run');
	# The same for an acquire and a probe, so that what a probe says is true for commands.
	for my $profile ("read -t 0.3 line\n", "set -x; export SHELLOPTS\n")
	{
		spew("$profile_home/.bashrc", $profile);
		ok($host->acquire(ssh_config($server))->{result}, 'an acquire, where a command runs');
		ok($host->probe(ssh_config($server))->{result}{ok}, '... and a probe');
	}
	spew("$profile_home/.bashrc", "cat >/dev/null\n");
	is_error($host->acquire(ssh_config($server), command => 1000), '08006', qr/waiting for the login shell to be ready/, 'an acquire, where none does');
	my $probe = $host->probe(ssh_config($server), command => 1000)->{result};
	ok(!$probe->{ok} && $probe->{details}{hint} =~ /login profile/, '... and a probe');

	# A sh that misbehaves once it has said that it is ready.
	my $shells = 0;
	for my $words (
		q(while IFS= read -r line; do echo "got: $line" >&2; exit 5; done),
		q(IFS= read -r line; echo "$line" | cut -c 1-60 >&2; echo "$line" | fold -w 20 >&2; exit 5),
		q(IFS= read -r line; echo "$line" >&2; kill -9 $$),
		q(IFS= read -r line; set -x; eval "exit 5 $line"),
		q(cat >&2 & sleep 0.3; exit 5))
	{
		my $bin = "$scratch/bad-sh-" . ++$shells;

		mkdir $bin;
		spew("$bin/sh", qq(#!/bin/bash\nm=\${!#}\necho "\$m ready 2" >&2; echo "\$m ready 1"\n$words\n));
		chmod 0755, "$bin/sh";
		my $answer = $with_profile->("PATH=$bin:\$PATH\n", 'printenv', [ 'TOKEN', "argument-$secret" ], env => { TOKEN => $secret, OTHER => "\x{e4} $secret" }, stdin => "stdin-$secret");

		is_error($answer, '38000', qr/the command was not started/, "a sh that does: $words");
		my $text = JSON::PP->new->encode($answer);
		unlike($text, qr/\Q@{[substr $secret, $_, 9]}\E/, '... shows no part of a secret') for 0, 5, length($secret) - 9;
	}
	# One that is given the script and then says nothing may run it yet.
	mkdir "$scratch/silent-sh";
	spew("$scratch/silent-sh/sh", qq(#!/bin/bash\nm=\${!#}\necho "\$m ready 2" >&2; echo "\$m ready 1"\nexec sleep 20\n), 0755);
	my $answer = $with_profile->("PATH=$scratch/silent-sh:\$PATH\n", 'true', [], limits => { connectMs => 800 });
	is_error($answer, '08006', qr/timed out after 800 ms while starting the remote command$/, 'a sh that says nothing');
	is($answer->{error}{data}{outcome}, 'unknown', '... and whether the command has run is not known');
	$answer = $with_profile->("PATH=$scratch/silent-sh:\$PATH\n", 'true', [], timeoutMs => 200, limits => { connectMs => 10000, graceMs => 100 });
	ok($answer->{result} && $answer->{result}{timedOut}, '... and one that the server ended in time') or diag explain $answer;
	$server->stop;
}

# Login shells that talk.
my $noisy = EnvrtFixture::Sshd->new(
	keys => $keys,
	extra => [
		'ForceCommand echo Welcome; echo Warning >&2; head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; set -x; eval "$SSH_ORIGINAL_COMMAND"'
	])->start;
$result = result(sh('echo out; echo error >&2'), server => $noisy);
is_deeply([ @$result{qw(stdout stderr)} ], [ "out\n", "error\n" ], 'what the login shell prints is left out');
my $broken = EnvrtFixture::Sshd->new(keys => $keys, extra => ['ForceCommand echo Closed for today. >&2; exit 3'])->start;
is_error(execute('true', [], server => $broken), '38000',
	qr/the command was not started \(status 3\): Closed for today\.$/, 'a login shell that runs nothing');

my $slow = EnvrtFixture::Sshd->new(keys => $keys, extra => ['ForceCommand sleep 60; eval "$SSH_ORIGINAL_COMMAND"'])->start;
is_error(execute('true', [], server => $slow, timeoutMs => 200, limits => { connectMs => 500 }), '08006',
	qr/timed out after 500 ms while waiting for the login shell to be ready$/, 'a login shell that takes too long');
$slow->stop;

# New keys in between.
my $rekeying = EnvrtFixture::Sshd->new(keys => $keys, extra => ['RekeyLimit 1M'])->start;
$result = result(sh('head -c 30000000 /dev/zero; wc -c >&2'), server => $rekeying, stdin => 'x' x 5000000);
is_deeply([ $result->{metadata}{stdoutBytes}, $result->{stderr} ], [ 30000000, "5000000\n" ], 'new keys on the way');
$rekeying->stop;

# Secrets.
my $secret = "s3cret-$$-" . time;
my $watcher = EnvrtFixture::spawn(
	sub {
		my $end = time + 60;

		while (time < $end && !-e "$scratch/stop")
		{
			spew("$scratch/seen", join ' ', running($secret)) if running($secret);
		}
	});
for my $i (1 .. 20)
{
	my %more = map { ("MORE_$_" => "$secret \x{e4}") } 1 .. ($i % 2 ? 0 : 50);

	result(sh('test "$SECRET" = "' . substr($secret, 0, 3) . '" && exit 1; sleep 0.02'), env => { SECRET => $secret, %more });
}
is(result(sh('echo "$SECRET"'), env => { SECRET => $secret })->{stdout}, "$secret\n", 'a variable');
spew("$scratch/stop", '');
waitpid $watcher, 0;
ok(!-e "$scratch/seen", '... that is in no arguments');

#######################################################################
# Time
#######################################################################
my $night = night();
my $took = elapsed(sub { $result = result(sh("echo out; sleep $night & sleep $night"), timeoutMs => 300) });
is_deeply(
	[ @$result{qw(exitCode signal timedOut stdout)} ],
	[ undef, 'SIGTERM', JSON::PP::true, "out\n" ],
	'a command that takes too long');
cmp_ok($took, '<', 2, '... is ended in time');
gone($night, '... with all of its process group');
$night = night();
$took = elapsed(
	sub {
		$result = result(sh("trap '' TERM; echo out; while :; do sleep $night; done"),
			timeoutMs => 200, limits => { graceMs => 300 });
	});
is_deeply(
	[ @$result{qw(exitCode signal timedOut stdout)} ],
	[ undef, 'SIGKILL', JSON::PP::true, "out\n" ],
	'a command that ignores SIGTERM');
cmp_ok($took, '>', 0.45, '... has its grace');
cmp_ok($took, '<', 3, '... but no more');
gone($night, '... and is killed');
$result = result(sh('trap "echo bye; exit 5" TERM; while :; do sleep 0.1; done'), timeoutMs => 200);
is_deeply(
	[ @$result{qw(exitCode signal timedOut stdout)} ],
	[ undef, undef, JSON::PP::true, "bye\n" ],
	'a command that makes use of its grace');
$night = night();
$result = result('sleep', [$night], limits => { callMs => 200 });
ok($result->{timedOut}, "the call's limit is one, too");
gone($night, '... with the same effect');

# What goes on.
$night = night();
$took = elapsed(sub { $result = result(sh("(setsid sleep $night &) ; echo out")) });
is_deeply([ @$result{qw(exitCode stdout)} ], [ 0, "out\n" ], 'a command that leaves something with its output');
cmp_ok($took, '<', 2, '... ends with its own end');
is(scalar running($night), 1, '... and what it left lives on');
kill 'KILL', running($night);
$took = elapsed(
	sub { $result = result(sh('echo out; exec >/dev/null 2>&1 </dev/null; sleep 1; exit 4')) });
is_deeply([ @$result{qw(exitCode stdout)} ], [ 4, "out\n" ], 'a command that closes its pipes');
cmp_ok($took, '>', 0.95, '... is waited for');
$took = elapsed(sub { $result = result(sh('(while :; do echo x; sleep 0.05; done) & exit 6')) });
is($result->{exitCode}, 6, 'a command that leaves something that writes');
cmp_ok($took, '<', 5, '... ends, too');
$result = result(sh('head -c 400000 /dev/zero | tr "\0" x; (sleep 5 &)'), limits => { maxOutput => 500000 });
is(length $result->{stdout}, 400000, 'all output from before the end is there');

# What stands beside a command has the user's variables and not the command's.
$result = result('/bin/cat', [], stdin => 'in', env => { PATH => '/nowhere', IFS => '0123456789-' });
is_deeply([ @$result{qw(exitCode stdout stderr)} ], [ 0, 'in', '' ], 'with a PATH of its own a command has its input');

# Input that nobody reads, and a reader that is slow.
$result = result('true', [], stdin => 'x' x 3000000);
is($result->{exitCode}, 0, 'a lot of input that is not read');
$result = result(sh('sleep 0.3; wc -c'), stdin => 'x' x 6000000);
is($result->{stdout}, "6000000\n", 'a lot of input that is read late');

# A lot of output.
my $before = $host->stats->{host}{rssBytes};
my $much = $sanitized ? 100 : 1000;
$result = result(sh("head -c ${much}M /dev/zero"), limits => { maxOutput => 1000 }, encoding => 'base64');
is($result->{exitCode}, 0, "$much MB of output");
is($result->{metadata}{stdoutBytes}, $much * 1024 * 1024, '... are counted');
is(length decode_base64($result->{stdoutBase64}), 1000, '... and cut');
SKIP:
{
	skip 'a sanitizer keeps what is freed', 1 if $sanitized;
	cmp_ok($host->stats->{host}{rssBytes} - $before, '<', 8 * 1024 * 1024, '... without a need for memory');
}

#######################################################################
# The client goes
#######################################################################
sub leave
{
	my ($name, $command, $night, %options) = @_;
	my $client = $host->connect;

	$client->send_call('environmentExecute', params(sh($command), %options));
	wait_until("$name runs", sub { running($night) >= 1 });
	$client->close;
	gone($night, "$name ends with its client");
	return;
}
$night = night();
leave('a command', "sleep $night", $night);
$night = night();
leave('a command that ignores SIGTERM', "trap '' TERM; while :; do sleep $night; done",
	$night, limits => { graceMs => 300 });
$night = night();
leave('a pipeline', "sleep $night | sleep $night", $night);
$night = night();
leave('a command that writes', "yes & sleep $night", $night);
is(scalar(map { running("\0yes\0") } 1), 0, '... all of it');

# Before it has begun.
my $client = $host->connect;
$client->send_call('environmentExecute', params('true', [], company => "early-$_")) for 1 .. 5;
$client->close;
wait_until('nothing is active', sub { $host->stats->{host}{activeCalls} == 0 });
pass('clients that go early');

# A server that makes no process group for a session, and whose shell stays.
my $plain = EnvrtFixture::Sshd->new(keys => $keys, extra => ['ForceCommand /bin/bash -c "$SSH_ORIGINAL_COMMAND"; exit $?'])->start;
$night = night();
$result = result(sh("sleep $night & sleep $night"), server => $plain, timeoutMs => 300);
ok($result->{timedOut}, 'a command in no group of its own, in time');
gone($night, '... ends with its children');

# A server with a single channel.
my $narrow = EnvrtFixture::Sshd->new(keys => $keys, max_sessions => 1)->start;
$night = night();
$result = result('sleep', [$night], server => $narrow, timeoutMs => 300);
is_deeply([ @$result{qw(signal timedOut)} ], [ 'SIGTERM', JSON::PP::true ], 'a server without a second channel');
$result = result(sh("trap '' TERM; while :; do sleep $night; done"),
	server => $narrow, timeoutMs => 200, limits => { graceMs => 200 });
is_deeply([ @$result{qw(signal timedOut)} ], [ 'SIGKILL', JSON::PP::true ], '... and a command that needs more');
gone($night, '... is killed');

# The connection is lost.
my $fragile = EnvrtFixture::Sshd->new(keys => $keys)->start;
$night = night();
$client = $host->connect;
my $id = $client->send_call('environmentExecute', params('sleep', [$night], server => $fragile));
wait_until('the command runs', sub { running($night) });
my ($sleeper) = running($night);
my $parent = (split ' ', slurp("/proc/$sleeper/stat") =~ s/.*\) //sr)[1];
kill 'KILL', $parent;
is_error($client->answer($id), '08006', qr/the connection was lost while the remote command ran/, 'a lost connection');
gone($night, '... and the command is ended over another one');

#######################################################################
# Streams
#######################################################################
# What came for a call: both streams, and when each piece did.
sub streamed
{
	my ($client, $id) = @_;
	my %got = (stdout => '', stderr => '', times => [], largest => 0);

	for my $message (@{ $client->{notifications} // [] })
	{
		my $params = $message->{params};

		next if $message->{method} ne 'envrt/output' || $params->{id} != $id;
		my $bytes = decode_base64($params->{dataBase64});
		$got{ $params->{stream} } .= $bytes;
		$got{largest} = length $bytes if length $bytes > $got{largest};
		push @{ $got{times} }, $message->{time};
	}
	return \%got;
}

$client = $host->connect;
$id = $client->send_call('environmentExecute',
	params(sh('echo one; sleep 0.5; echo two >&2; sleep 0.5; printf "\377\000"; exit 3'), stream => JSON::PP::true));
$answer = $client->answer($id);
my $got = streamed($client, $id);
is_deeply([ @$got{qw(stdout stderr)} ], [ "one\n\377\0", "two\n" ], 'streamed output');
is_deeply([ sort keys %{ $answer->{result} } ], [qw(exitCode metadata signal timedOut)], '... is not in the result');
is($answer->{result}{exitCode}, 3, '... which has the rest');
is_deeply([ @{ $answer->{result}{metadata} }{qw(stdoutBytes stderrBytes)} ], [ 6, 4 ], '... and how much it was');
cmp_ok($got->{times}[1] - $got->{times}[0], '>', 0.35, '... and comes when it is written');
cmp_ok($got->{times}[2] - $got->{times}[1], '>', 0.35, '... piece by piece');
$id = $client->send_call('environmentExecute',
	params(sh('head -c 5000000 /dev/urandom | tee "$HOME/random"'), stream => JSON::PP::true, limits => { maxOutput => 10 }));
$answer = $client->answer($id);
$got = streamed($client, $id);
ok($got->{stdout} eq slurp("$home/random"), 'all of a long output');
cmp_ok($got->{largest}, '<=', 65536, '... in pieces');
is($answer->{result}{metadata}{stdoutTruncated}, undef, '... and nothing is cut');

# A client that does not read.
$before = $host->stats->{host}{rssBytes};
$client = $host->connect;
$id = $client->send_call('environmentExecute',
	params(sh('exec 2>"$HOME/written"; head -c 15000000 /dev/zero | dd bs=65536 2>/dev/null; echo done >&2'), stream => JSON::PP::true, timeoutMs => 120_000));
sleep 1.5;
is(slurp("$home/written"), '', 'a client that does not read makes the command wait');
SKIP:
{
	skip 'a sanitizer keeps what is freed', 1 if $sanitized;
	cmp_ok($host->stats->{host}{rssBytes} - $before, '<', 12 * 1024 * 1024, '... and not the memory grow');
}
is(result('echo', ['other'])->{stdout}, "other\n", '... which is nothing to others');
$answer = $client->answer($id, 120);
is($answer->{result}{metadata}{stdoutBytes}, 15000000, '... until it reads') or diag explain $answer;
is(length streamed($client, $id)->{stdout}, 15000000, '... all of it');
$night = night();
$client = $host->connect;
$client->send_call('environmentExecute', params(sh("yes; sleep $night"), stream => JSON::PP::true));
wait_until('it runs', sub { running($night) });
sleep 0.5;
$client->close;
gone($night, 'a command that waits ends with its client');
$client = $host->connect;
$id = $client->send_call('environmentExecute', params(sh('yes'), stream => JSON::PP::true, timeoutMs => 300));
sleep 1;
$answer = $client->answer($id);
is_deeply([ @{ $answer->{result} }{qw(signal timedOut)} ], [ 'SIGTERM', JSON::PP::true ], 'one that is waited for when its time is over');
is(length streamed($client, $id)->{stdout}, $answer->{result}{metadata}{stdoutBytes}, '... loses nothing');

# One call is cancelled.
$night = night();
$client = $host->connect;
my $other = $client->send_call('environmentExecute', params('sleep', ['1']));
$id = $client->send_call('environmentExecute', params('sleep', [$night]));
wait_until('it runs', sub { running($night) });
my $cancel = $client->send_call('envrt/cancel', { id => $id });
is_error($client->answer($id), '57014', qr/cancelled/, 'a call that is cancelled');
$answer = $client->answer($cancel);
ok(exists $answer->{result} && !defined $answer->{result}, '... by one that is answered with null');
gone($night, '... and its command');
is($client->answer($other)->{result}{exitCode}, 0, '... another call goes on');
ok(exists $client->call('envrt/cancel', { id => $id })->{result}, 'a call that is over can be cancelled');
ok(exists $host->call('envrt/cancel', { id => 1 })->{result}, '... and one of nobody');
$client = $host->connect;
$id = $client->send_call('environmentExecute', params('sleep', ['1']));
$host->connect->call('envrt/cancel', { id => $id });
is($client->answer($id)->{result}{exitCode}, 0, 'a call of another connection is not cancelled');
is_error($host->call('envrt/cancel', {}), '22023', qr/id must be/, 'no id');

#######################################################################
# Many, and the end
#######################################################################
$client = $host->connect;
my @ids = map { $client->send_call('environmentExecute', params(sh("sleep 0.2; echo $_"))) } 1 .. 40;
my $good = grep { ($client->answer($ids[ $_ - 1 ])->{result}{stdout} // '') eq "$_\n" } 1 .. 40;
is($good, 40, 'forty at once');

SKIP:
{
	skip 'a sanitizer keeps what is freed', 1 if $sanitized;
	execute('true', []) for 1 .. 50;
	$before = $host->stats->{host}{rssBytes};
	execute('true', [], stdin => 'x' x 1000, env => { A => "\n" }) for 1 .. 200;
	cmp_ok($host->stats->{host}{rssBytes} - $before, '<', 512 * 1024, 'two hundred leave the memory where it was');
}

$night = night();
$client = $host->connect;
$client->send_call('environmentExecute', params('sleep', [$night]));
wait_until('the command runs', sub { running($night) });
is($host->terminate, 0, 'SIGTERM ends the host in order');
gone($night, '... with its commands');
unlike($host->log_text, qr/Sanitizer|runtime error/, 'no finding of a sanitizer');
is($host->log_text, '', 'nothing in the log');

done_testing();
