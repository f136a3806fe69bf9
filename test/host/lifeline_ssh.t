#!/usr/bin/perl
# Commands over ssh that may run for long end when the host that runs them does, whatever ends it, and with
# their connection; and but for that they are as others are.

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
my $scratch = temporary_directory();
my $true = JSON::PP::true;

sub params
{
	my ($command, $args, %options) = @_;
	my $server = delete $options{server} // $sshd;
	my $limits = delete $options{limits} // {};

	return {
		%{ HostTest::request(ssh_config($server)) },
		command => $command,
		args => $args,
		stream => $true,
		lease => { providerLeaseId => 'ssh://somewhere', metadata => { remoteCwd => "$server->{directory}/home" } },
		%options,
		limits => { callMs => 30000, connectMs => 10000, graceMs => 1000, %$limits }
	};
}

# The result of a call, with what was streamed.
sub result
{
	my ($command, $args, %options) = @_;
	my $client = $host->connect;
	my $id = $client->send_call('environmentExecute', params($command, $args, %options));
	my $answer = $client->answer($id);
	my %got = (stdout => '', stderr => '');

	$got{ $_->{params}{stream} } .= decode_base64($_->{params}{dataBase64})
	  for grep { $_->{method} eq 'envrt/output' } @{ $client->{notifications} // [] };
	diag(JSON::PP->new->encode($answer)) if !$answer->{result};
	return { %{ $answer->{result} // {} }, %got };
}

sub running
{
	my ($text) = @_;

	return grep { $_ != $$ && index(eval { slurp("/proc/$_/cmdline") } // '', $text) >= 0 } map { m{(\d+)} } glob '/proc/[0-9]*';
}

# What a process has of the fields of /proc/PID/stat after its name: state, parent, group.
sub stat_of
{
	my ($pid) = @_;

	return split ' ', (eval { slurp("/proc/$pid/stat") } // '') =~ s/.*\) //sr;
}

sub members_of
{
	my ($group) = @_;

	return grep { ((stat_of($_))[2] // 0) == $group } map { m{(\d+)} } glob '/proc/[0-9]*';
}

my $nights = 200000 + $$;

sub night
{
	return ++$nights . '.5';
}

sub gone
{
	my ($night, $name, $seconds) = @_;
	my $gone = eval { wait_until("$night is over", sub { !running($night) }, $seconds // 10); 1 };

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($gone, $name) or kill 'KILL', running($night);
	return;
}

# Whether a command is watched over: its group has one that is not its child.
sub watchers_of
{
	my ($group) = @_;

	return grep { $_ != $group && (stat_of($_))[1] != $group } members_of($group);
}

# Starts a shell script that holds the night among its arguments; returns its client and call.
sub start
{
	my ($night, $script, %options) = @_;
	my $client = $host->connect;
	my $id = $client->send_call('environmentExecute', params('sh', [ '-c', $script, 'sh', $night ], %options));

	wait_until('the command runs', sub { running($night) });
	wait_until('the host knows', sub { grep { $_->{state} eq 'running' } @{ $host->stats->{calls} } });
	return ($client, $id);
}

# The sshd process of a connection, an ancestor of what it runs.
sub connection_of
{
	my ($pid) = @_;

	return (stat_of($pid))[1];
}

#######################################################################
# A command is as it would be without
#######################################################################
# The files that a command's input may be in.
sub inputs
{
	return grep { m{/envrt-[0-9a-f]{32}} } map { glob "$_/envrt-*" } qw(/dev/shm /tmp);
}

my $bytes = join('', map { chr } 0 .. 255) . join '', map { chr int rand 256 } 1 .. 200000;
my @forms = (
	[ 'the usual shell', $sshd ],
	map {
		mkdir "$scratch/$_";
		symlink "/bin/$_", "$scratch/$_/sh";
		# busybox is what it is called.
		my $shell = $_ eq 'busybox' ? "$scratch/$_/sh" : "/bin/$_";
		[ "$_ for both", EnvrtFixture::Sshd->new(keys => $keys, extra => ["ForceCommand PATH=$scratch/$_:\$PATH exec $shell -c \"\$SSH_ORIGINAL_COMMAND\""])->start ]
	} grep { -x "/bin/$_" } qw(dash bash busybox));

for my $form (@forms)
{
	my ($name, $server) = @$form;
	my @server = (server => $server);
	my $result = result('cat', [], stdinBase64 => encode_base64($bytes, ''), @server);

	ok($result->{stdout} eq $bytes, "$name: every byte through stdin and stdout");
	is(result('cat', [ '/dev/stdin', "\x{20ac}\n" ], stdinBase64 => encode_base64("\0\n", ''), @server)->{stdout}, "\0\n", '... a few, with an argument that is not ASCII');
	is(result('wc', ['-c'], @server)->{stdout}, "0\n", '... no stdin is an empty one');
	$result = result('sh', [ '-c', 'echo out; echo error >&2; exit 7' ], @server);
	is_deeply([ @$result{qw(exitCode signal stdout stderr)} ], [ 7, undef, "out\n", "error\n" ], '... status and streams');
	is(result('sh', [ '-c', 'kill -SEGV $$' ], @server)->{signal}, 'SIGSEGV', '... a signal');
	is(result('sh', [ '-c', 'exit 143' ], @server)->{exitCode}, 143, '... a status that is none');
	is(result($^X, [ '-e', 'print wait, " ", getpgrp == $$ ? "leader" : "member"' ], @server)->{stdout}, '-1 leader', '... no child that it has not made, and its own group');
	is(result($^X, [ '-e', 'opendir my $d, "/proc/self/fd"; print join " ", sort grep { /\d/ && $_ != fileno $d } readdir $d' ], @server)->{stdout},
		'0 1 2', '... no other descriptor');
	is(result('sh', [ '-c', 'env | grep -c ^envrt_' ], @server)->{stdout}, "0\n", '... no other variable');
}
# (Others' live but a moment.)
ok(eval { wait_until('no input is left', sub { !inputs() }); 1 }, 'no input is left in a file');
my $result = result('sleep', [ night() ], timeoutMs => 200);
is_deeply([ @$result{qw(signal timedOut)} ], [ 'SIGTERM', $true ], 'time that is over');
my $night = night();
$result = result('sh', [ '-c', "(sleep $night &) ; exit 3" ]);
is($result->{exitCode}, 3, 'a command that leaves something in its group');
my ($left) = running($night);
wait_until('its watcher is gone', sub { members_of((stat_of($left))[2]) == 1 }) if $left;
is(scalar running($night), 1, '... which lives on when the watcher has gone');
kill 'KILL', running($night);

# Without a place for the input all is as it was.
my $nowhere = EnvrtFixture::Sshd->new(keys => $keys,
	extra => ['ForceCommand TMPDIR=/nowhere; export TMPDIR; eval "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed s,/dev/shm,/nowhere,)"'])->start;
is(result('cat', [], stdin => "some\n", server => $nowhere)->{stdout}, "some\n", 'no place for the input');

#######################################################################
# The connection is cut
#######################################################################
my %stubborn = (
	'a command' => 'sleep 1000',
	'one that ignores SIGTERM' => 'trap "" TERM; while :; do sleep 1000; done',
	'one with children' => 'sleep 1001 & sleep 1002 | sleep 1003 & wait',
	'one that has input' => 'sleep 1000');
for my $name (sort keys %stubborn)
{
	# A server of its own, to which no other connection can be made when this one is cut.
	my $server = EnvrtFixture::Sshd->new(keys => $keys)->start;
	my @input = $name =~ /input/ ? (stdin => 'x' x 3_000_000) : ();

	$night = night();
	my ($client, $id) = start($night, $stubborn{$name} . '; :', server => $server, @input);
	my ($group) = map { (stat_of($_))[2] } running($night);
	my @members = members_of($group);
	is(scalar watchers_of($group), 1, "$name has a watcher");
	my $connection = connection_of($group);
	kill 'STOP', $server->pid;
	kill 'KILL', $connection;
	is_error($client->answer($id), '08006', qr/the connection was lost/, '... its connection is cut');
	gone($night, '... and it is gone', 5);
	wait_until("the group is gone", sub { !members_of($group) }, 5);
	is_deeply([ members_of($group) ], [], '... with all its group');
	kill 'CONT', $server->pid;
	$server->stop;
}

#######################################################################
# The host is killed
#######################################################################
for my $name (sort keys %stubborn)
{
	my @input = $name =~ /input/ ? (stdin => 'x' x 3_000_000) : ();

	$night = night();
	# (The client must live on, since its end is the command's, too.)
	my @held = start($night, $stubborn{$name} . '; :', @input);
	my ($group) = map { (stat_of($_))[2] } running($night) or die "$name does not run";
	kill 'KILL', $host->{pid};
	waitpid $host->{pid}, 0;
	EnvrtFixture::unregister($host);
	gone($night, "$name ends when the host is killed", 5);
	wait_until("the group is gone", sub { !members_of($group) }, 5);
	$host = start_host(control => {});
}

# One that is not streamed, but may take its time.
$night = night();
my @patient = start($night, 'sleep 1000; :', stream => undef, timeoutMs => 300_001);
kill 'KILL', $host->{pid};
waitpid $host->{pid}, 0;
EnvrtFixture::unregister($host);
gone($night, 'a command that may run for long ends when the host is killed', 5);
$host = start_host(control => {});

# The end of the control channel.
$night = night();
my @held = start($night, 'trap "" TERM; while :; do sleep 1000; done');
close $host->{control};
waitpid $host->{pid}, 0;
EnvrtFixture::unregister($host);
gone($night, 'a command ends when the launcher does', 5);
done_testing();
