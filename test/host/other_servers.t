#!/usr/bin/perl
# The driver host against dropbear and tinyssh, and behind a proxy that freezes.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use EnvrtOtherSshd;
use MIME::Base64 qw(encode_base64);
use Test::More;

plan skip_all => 'no bubblewrap, dropbear-bin, tinysshd and socat' if grep { !EnvrtOtherSshd::is_available($_) } qw(dropbear tinyssh openssh);

my $host = start_host(control => { sshKeepaliveMs => 500 });
my $client = $host->connect;
my $base = temporary_directory();

sub params
{
	my ($server, %options) = @_;

	return {
		%{ HostTest::request(ssh_config($server)) },
		lease => { providerLeaseId => 'ssh://x', metadata => { remoteCwd => "$server->{directory}/home" } },
		limits => { callMs => 30000, connectMs => 20000 },
		%options
	};
}

sub shell
{
	my ($server, $script, %options) = @_;

	return params($server, command => 'sh', args => [ '-c', $script ], %options);
}

sub execute
{
	return $client->call('environmentExecute', shell(@_));
}

# In words, for is().
sub outcome
{
	my ($answer) = @_;
	my $result = $answer->{result} or return 'error: ' . ($answer->{error}{message} // 'none');

	return join ' ', map { $_ // '-' } $result->{exitCode}, $result->{signal}, $result->{stdout}, $result->{stderr};
}

sub transfer
{
	my ($server, $method, $local, $remote) = @_;

	return $client->call($method, params($server, localPath => $local, remotePath => $remote));
}

#######################################################################
# What works with any server
#######################################################################
mkdir "$base/tree";
mkdir "$base/tree/$_" for 'a', 'b';
spew("$base/tree/a/file", 'x' x 300_000);
spew("$base/tree/b/script", "#!/bin/sh\necho run\n", 0755);
my $bytes = join '', map { chr($_ % 256) } 0 .. 99_999;

my %server;
for my $kind (qw(dropbear tinyssh))
{
	my $server = $server{$kind} = EnvrtOtherSshd->new($kind)->start;

	like($client->call('environmentAcquireLease', HostTest::request(ssh_config($server)))->{result}{providerLeaseId},
		qr{^ssh://tester\@127\.0\.0\.1:\d+/.*/workspace$}, "$kind: an acquire");
	ok(-d "$server->{directory}/home/workspace", '... makes the workspace');
	is(outcome(execute($server, 'echo out; echo error >&2; exit 7')), "7 - out\n error\n", "$kind: a command's streams and status");
	is(outcome(execute($server, 'printf "%s" "$V"', env => { V => "it's\n" })), "0 - it's\n ", '... its variables');
	is(outcome(execute($server, 'wc -c', stdinBase64 => encode_base64($bytes, ''))), "0 - 100000\n ", '... its input');
	like(outcome(execute($server, 'kill -TERM $$')), qr/^- SIGTERM|^143 -/, '... its signal');
	my $timed_out = execute($server, 'sleep 1000', timeoutMs => 300);
	ok($timed_out->{result}{timedOut}, '... its timeout') or diag(JSON::PP->new->encode($timed_out));
	is(outcome(execute($server, 'echo again')), "0 - again\n ", '... and the next one');

	my $pushed = transfer($server, 'environmentPushFiles', "$base/tree", 'tree');
	is($pushed->{result}{files}, 2, "$kind: a push") or diag(JSON::PP->new->encode($pushed));
	ok(!system('diff', '-r', "$base/tree", "$server->{directory}/home/tree"), '... arrives');
	is(transfer($server, 'environmentPushFiles', "$base/tree", 'tree')->{result}{files}, 0, '... and is nothing the second time');
	mkdir "$base/$kind";
	is(transfer($server, 'environmentPullFiles', "$base/$kind", 'tree')->{result}{files}, 2, "$kind: a pull");
	ok(!system('diff', '-r', "$base/tree", "$base/$kind"), '... arrives');
}

# Names of users as directories have them.
for my $user ('DOMAIN\\tester', 'Test User', "o'neil\$")
{
	my $server = EnvrtOtherSshd->new('openssh', user => $user)->start;

	is($client->call('environmentAcquireLease', HostTest::request(ssh_config($server)))->{result}{metadata}{username}, $user, "a user $user");
	is(outcome(execute($server, 'exit 3')), '3 -  ', '... and a command');
	$server->stop;
}

#######################################################################
# Many at a time: what a server closes before it has begun is tried again
#######################################################################
for my $kind (qw(dropbear tinyssh))
{
	my @ids;

	push @ids, $client->send_call('environmentExecute', shell($server{$kind}, "echo $_; exit 3")) for 1 .. ($kind eq 'tinyssh' ? 20 : 60);
	my @wrong = grep { $_->[1] ne "3 - $_->[0]\n " }
	  map { [ $_ + 1, outcome($client->answer($ids[$_])) ] } 0 .. $#ids;
	is(@wrong, 0, "$kind: many commands at a time") or diag("$wrong[0][0]: $wrong[0][1]");
}
{
	# One that ends a connection with its channel is not asked for a second one.
	my $before = () = slurp($server{tinyssh}{log}) =~ /connection from/g;
	is(outcome(execute($server{tinyssh}, 'exit 3')), '3 -  ', "tinyssh: a command $_") for 1 .. 3;
	my $after = () = slurp($server{tinyssh}{log}) =~ /connection from/g;
	is($after - $before, 3, '... each over a connection of its own');
}

#######################################################################
# The end of a server, and of what is between
#######################################################################
for my $kind (qw(dropbear tinyssh))
{
	my $server = $server{$kind};
	my $id = $client->send_call('environmentExecute', shell($server, 'touch started; exec sleep 1000'));

	wait_until('the command runs', sub { -e "$server->{directory}/home/started" });
	$server->stop;
	is_error($client->answer($id), '08006', qr/the connection was lost while the remote command ran/, "$kind: a server that is killed");
	$server->start;
	is(outcome(execute($server, 'echo back')), "0 - back\n ", '... and is back');
}

# What freezes goes on acknowledging, so TCP notices nothing.
{
	my $sleep = 'sleep 1000.' . $$;
	my @frozen;

	for my $kind (qw(openssh dropbear tinyssh))
	{
		my $server = $server{$kind} // EnvrtOtherSshd->new($kind)->start;
		my $port = EnvrtFixture::free_port('127.0.0.1');
		my $proxy = EnvrtFixture::spawn(
			sub {
				exec EnvrtFixture::bound_to_us('socat', "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,nodelay", "TCP:127.0.0.1:$server->{port}");
			});
		wait_until('the proxy listens', sub { IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port) });
		unlink "$server->{directory}/home/started";
		my $params = shell($server, "touch started; exec $sleep");
		$params->{config}{port} = $port;
		$params->{config}{knownHosts} =~ s/\]:\d+/]:$port/;
		my $id = $client->send_call('environmentExecute', $params);
		push @frozen, [ $kind, $proxy, $id, "$server->{directory}/home/started" ];
	}
	my $sleeping = sub {
		return grep { (eval { slurp("/proc/$_/cmdline") } // '') eq ($sleep =~ s/ /\0/r) . "\0" } map { m{(\d+)$} } glob '/proc/[0-9]*';
	};
	wait_until("$_->[0]: the command runs", sub { -e $_->[3] }) for @frozen;
	# A silent one that answers is left alone, for longer than the time in which it has to answer.
	sleep 3;
	is(scalar(() = $sleeping->()), 3, 'silent commands live on') or diag(JSON::PP->new->encode([ map { eval { $client->answer($_->[2], 0) } } @frozen ]));
	kill 'STOP', $_->[1], EnvrtFixture::processes_below($_->[1]) for @frozen;
	for my $frozen (@frozen)
	{
		my $answer = $client->answer($frozen->[2], 30);

		is_error($answer, '08006', qr/the server has not answered for 2000 ms/, "$frozen->[0]: until the connection freezes");
		is($answer->{error}{data}{outcome}, 'unknown', '... and what it has come to is not known');
	}
	EnvrtFixture::end_process($_->[1]) for @frozen;
	ok(eval { wait_until('the sleeps are over', sub { !$sleeping->() }, 20) }, '... which ends there, too');
}

done_testing();
