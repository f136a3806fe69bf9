#!/usr/bin/perl
# The driver host against servers that misbehave: time limits, cancelling, and nobody else harmed.

use strict;
use warnings;

use FindBin;
use IO::Socket::INET;
use lib $FindBin::RealBin;
use HostTest;
use Test::More;

my $host = start_host();
my $sshd = EnvrtFixture::Sshd->new->start;

# Phases in which a server may stop, and what is said of it at the time limit.
my %phase = (
	silent => qr/timed out after 400 ms while waiting for the server's banner/,
	banner => qr/timed out after 400 ms while exchanging keys/,
	kex => qr/timed out after 400 ms while exchanging keys/,
	auth => qr/timed out after 400 ms while logging in/,
	exec => qr/timed out after 400 ms while starting the remote command/);

for my $mode (qw(silent banner kex auth exec))
{
	my $bad = bad_sshd($mode);
	my $answer;
	my $setting = $mode eq 'exec' ? 'ssh_command_timeout' : 'ssh_connect_timeout';
	my $took = elapsed(sub {
		$answer = $host->acquire(ssh_config($bad), connect => $mode eq 'exec' ? 5000 : 400, command => 400);
	});

	is_error($answer, '08006', $phase{$mode}, "$mode: a time limit");
	like($answer->{error}{message}, qr/nobody\@127\.0\.0\.1:$bad->{port}/, "$mode: ... names the target");
	like($answer->{error}{data}{hint}, qr/envrt\.$setting/, "$mode: ... names the setting");
	is($answer->{error}{code}, -32003, "$mode: ... is a timeout in the protocol");
	cmp_ok($took, '<', 2, "$mode: ... comes in time");
	wait_until("$mode: the connection is dropped", sub { $bad->count('close') == $bad->count('accept') });
	pass("$mode: the connection is dropped");

	# A client that goes away.
	my $seen = $mode eq 'exec' ? 'exec' : 'accept';
	my $before = $bad->count($seen);
	my $client = $host->connect;
	$client->send_call('environmentAcquireLease', HostTest::request(ssh_config($bad)));
	wait_until("$mode: it got there", sub { $bad->count($seen) > $before });
	$client->close;
	wait_until("$mode: dropped with its client", sub { $bad->count('close') == $bad->count('accept') });
	pass("$mode: a client that goes takes the connection with it");
	$bad->stop;
}

# Fifty calls of as many companies hang, and others do not notice.
{
	my $bad = bad_sshd('silent');
	my $client = $host->connect;
	my $answer;

	$host->acquire(ssh_config($sshd));
	my @plain = sort { $a <=> $b } map { elapsed(sub { $host->acquire(ssh_config($sshd)) }) } 1 .. 21;
	$client->send_call('environmentAcquireLease', HostTest::request(ssh_config($bad), company => "c$_"))
	  for 1 .. 50;
	wait_until('calls hang', sub { $bad->count('accept') >= 8 });
	my @busy = sort { $a <=> $b } map { elapsed(sub { $answer = $host->acquire(ssh_config($sshd)) }) } 1 .. 21;
	ok($answer->{result}, 'an acquire beside fifty calls that hang');
	cmp_ok($busy[10], '<', 2 * $plain[10] + 0.1, '... does not wait for them');
	is(scalar @{ $host->stats->{calls} }, 50, '... while they still hang');
	$client->close;
	wait_until('dropped', sub { $bad->count('close') == $bad->count('accept') });
	pass('all are dropped with their client');
	$bad->stop;
}

# Two share a connection that is being made; when one goes the other keeps it.
{
	my $bad = bad_sshd('silent');
	my $first = $host->connect;
	my $second = $host->connect;

	$first->send_call('environmentAcquireLease', HostTest::request(ssh_config($bad)));
	my $id = $second->send_call('environmentAcquireLease',
		HostTest::request(ssh_config($bad), connect => 1500));
	wait_until('connected', sub { $bad->count('accept') });
	$first->close;
	is_error($second->answer($id), '08006', qr/timed out/, 'the one that stays keeps the connection');
	is($bad->count('accept'), 1, '... which they shared');
	$bad->stop;
}

# Servers that do worse than nothing.
{
	my $bad = bad_sshd('junk');
	is_error($host->acquire(ssh_config($bad)), '08001', qr/no SSH server answers there/, 'junk');
	$bad->stop;

	$bad = bad_sshd('flood');
	my $before = $host->stats->{host}{rssBytes};
	my $answer;
	my $took = elapsed(sub { $answer = $host->acquire(ssh_config($bad)) });
	is_error($answer, '38000', qr/the login shell wrote more than 1048576 bytes before it was ready/, 'a flood');
	cmp_ok($took, '<', 5, '... is cut short');
	wait_until('the flood is dropped', sub { $bad->count('close') == $bad->count('accept') });
	cmp_ok($host->stats->{host}{rssBytes} - $before, '<', 16 * 1024 * 1024, '... memory stays flat');
	$bad->stop;

	$bad = bad_sshd('drop-exec');
	is_error($host->acquire(ssh_config($bad)), '08006', qr/connection was lost while the remote command was being started/,
		'a connection dropped in the middle of the start');
	$bad->stop;

	$bad = bad_sshd('signals');
	my $params = HostTest::request(ssh_config($bad));
	is_error($host->call('environmentExecute', { %$params, command => 'true', args => [] }), '38000',
		qr/signal FIRST ended the login shell$/, 'two signals that ended one shell');
	$bad->stop;

	$bad = bad_sshd('hangup');
	$took = elapsed(sub { $answer = $host->acquire(ssh_config($bad), connect => 600) });
	is_error($answer, '08006', qr/timed out after 600 ms/, 'a server that hangs up at once');
	like($answer->{error}{data}{detail}, qr/closed the connection before it said who it is/, '... and why');
	cmp_ok($bad->count('accept'), '>', 1, '... it was tried again');
	is_error($host->acquire(ssh_config($bad), connect => 30000),
		'08006', qr/closed the connection before it said who it is \(8 times\)/, '... and given up');
	$bad->stop;
}

# A command that is cancelled ends on the remote side as well.
{
	my $silent = EnvrtFixture::Health->new(silent => 1)->start;
	my $client = $host->connect;
	# A process may end while we look at it.
	my $commands = sub { grep { (eval { slurp("/proc/$_/cmdline") } // '') =~ /^curl\0.*\Q@{[$silent->port]}\E/s }
		  $sshd->sessions };

	$client->send_call('environmentAcquireLease',
		HostTest::request(ssh_config($sshd), candidates => [ $silent->origin ], probe => 60000));
	wait_until('the command runs', sub { $commands->() });
	$client->close;
	wait_until('the command has ended', sub { !$commands->() });
	pass('a cancelled command ends on the remote side');
	my $count = $sshd->count_connections;
	ok($host->acquire(ssh_config($sshd))->{result}, 'the session goes on');
	is($sshd->count_connections, $count, '... and is still used');
}

# A remote command that does not end.
{
	my $silent = EnvrtFixture::Health->new(silent => 1)->start;
	my $answer = $host->acquire(ssh_config($sshd), candidates => [ $silent->origin ],
		command => 200, probe => 300);

	ok($answer->{error}, 'a remote command in a hurry');
}

# Login shells that talk, and ones that can do nothing.
sub with_login_output
{
	my ($text, %options) = @_;
	my $loud = EnvrtFixture::Sshd->new(extra => [$text])->start;
	my $answer = $host->acquire(ssh_config($loud), %options);

	$loud->stop;
	return $answer;
}
my $run = 'eval "$SSH_ORIGINAL_COMMAND"';
ok(with_login_output(qq{ForceCommand echo hello; echo 'envrt-x cwd'; echo oops >&2; $run})->{result},
	'a profile that prints before');
ok(with_login_output(qq{ForceCommand printf 'no newline'; $run})->{result},
	'a profile that ends in the middle of a line');
ok(with_login_output(qq{ForceCommand sh -c "\$SSH_ORIGINAL_COMMAND"; echo goodbye; exit 7})->{result},
	'a profile that prints after');
my $answer = with_login_output('ForceCommand echo This account is not available. >&2; exit 3');
is_error($answer, '38000', qr/failed with status 3: This account is not available\./, 'no shell');
# As cmd.exe and PowerShell of Windows' OpenSSH answer.
for my $words ("'exec' is not recognized as an internal or external command,", "exec : The term 'exec' is not recognized as the name of a cmdlet")
{
	$answer = with_login_output(qq{ForceCommand echo "$words" >&2; exit 1});
	is_error($answer, '38000', qr/failed with status 1: \Q$words\E/, 'no POSIX shell');
	like($answer->{error}{data}{hint}, qr/is no POSIX shell\. On Windows, set DefaultShell/, '... and what to do');
}
$answer = with_login_output('ForceCommand kill -9 $$');
is_error($answer, '38000', qr/ended by signal KILL/, 'a shell that is killed');
$answer = with_login_output("ForceCommand printf 'bad \\377\\033[31m text\\n' >&2; exit 4");
is($answer->{error}{data}{detail}, "bad \x{fffd}[31m text", 'what a remote side writes is made safe');
is_error(with_login_output('ForceCommand yes'), '38000', qr/wrote more than 1048576 bytes before/, 'a shell that floods');
mkdir "$sshd->{directory}/empty";
$answer = with_login_output(
	qq{ForceCommand cd / && mkdir -p $sshd->{directory}/bin && ln -sf /bin/mkdir /bin/sh $sshd->{directory}/bin/ && PATH=$sshd->{directory}/bin && $run},
	candidates => ['http://127.0.0.1:1']);
is_error($answer, '38000', qr/could not reach any Paperclip API candidates\.$/, 'no curl');
like($answer->{error}{data}{detail}, qr/has no curl/, '... is said');
like($answer->{error}{data}{hint}, qr/Install curl/, '... and what to do');

# Servers that never pause, before any login: others are served all the while.
for my $flood ([ 'empty lines before the banner', '', "\n" x 65536 ],
	[ 'messages to be ignored', "SSH-2.0-flood\r\n", pack('NC', 1036, 6) . "\x02" . pack('N', 1024) . 'x' x 1024 . "\0" x 6 ])
{
	my ($name, $greeting, $bytes) = @$flood;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) or die $!;
	my $child = EnvrtFixture::spawn(
		sub {
			$SIG{PIPE} = 'IGNORE';
			while (my $peer = $listener->accept)
			{
				syswrite $peer, $greeting;
				1 while syswrite $peer, $bytes x 16;
			}
		});
	my $client = $host->connect;
	my $slowest = 0;

	my $id = $client->send_call('environmentAcquireLease',
		HostTest::request(ssh_config($sshd, port => $listener->sockport), connect => 1500));
	for (1 .. 20)
	{
		my $took = elapsed(sub { $host->call('envrt/ping', {}) });

		$slowest = $took if $took > $slowest;
	}
	cmp_ok($slowest, '<', 1, "$name: neighbours are answered");
	my $took = elapsed(sub { $answer = $client->answer($id, 10) });
	like($answer->{error}{data}{sqlstate}, qr/^0800[16]$/, "$name: an error");
	cmp_ok($took, '<', 4, "$name: in time");
	EnvrtFixture::end_process($child);
}

# The remote side can't make its directory what it likes.
for my $cwd ('../relative', '/with\\033[31mcolour', '')
{
	my $liar = EnvrtFixture::Sshd->new(
		extra => [ q{ForceCommand m=$(printf '%s' "$SSH_ORIGINAL_COMMAND" | grep -o 'envrt-[0-9a-f]*' | tail -n 1); printf "$m cwd\n} . $cwd . q{\n$m api skip\n$m end\n"} ])->start;

	$answer = $host->acquire(ssh_config($liar));
	is_error($answer, '38000', qr/\S/, "a remote directory \"$cwd\" is not believed");
	$liar->stop;
}

# A host that has its own list of names, of which a test can change what they stand for.
SKIP:
{
	skip 'this user can make no namespaces here', 1 if !EnvrtFixture::has_sandboxes();
	my $directory = temporary_directory();
	my $program = $ENV{ENVRT_DRIVER_HOST} // "$top/envrt_driver_host";
	my $names = sub { spew("$directory/hosts", join '', map { "$_\n" } @_) };
	$names->();
	spew("$directory/host", qq{#!/bin/sh\nexec unshare -Urm sh -c 'mount --bind $directory/hosts /etc/hosts && exec "\$0" "\$@"' $program "\$@"\n}, 0755);
	my $far = start_host(program => "$directory/host");
	my $client = $far->connect;
	my $first = EnvrtFixture::Sshd->new(addresses => ['127.0.0.5'], host_keys => ['ed25519'], max_sessions => 1)->start;
	my $key = join ' ', (split ' ', $first->keys->text('host_ed25519.pub'))[ 0, 1 ];
	my $run = sub {
		my ($host, $server, $script) = @_;
		my $base = HostTest::request(ssh_config($server, host => $host, knownHosts => "[$host]:@{[$first->port]} $key\n"), connect => 2000);

		return { %$base, command => 'sh', args => [ '-c', $script ], lease => { providerLeaseId => 'x', metadata => { remoteCwd => "$server->{directory}/home" } } };
	};

	# One refuses, and one takes no connection more and says nothing.  They are tried before the one that answers.
	my $deaf = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $first->port, Listen => 1) or die $!;
	my @waiting = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $first->port, Blocking => 0) } 1 .. 4;
	$names->('::1 dual.test', '127.0.0.1 dual.test', '127.0.0.5 dual.test');
	my $answer = $client->call('environmentExecute', $run->('dual.test', $first, 'echo $SSH_CONNECTION'));
	like($answer->{result}{stdout}, qr/ 127\.0\.0\.5 \d+$/, 'a name of which one address of three answers') or diag explain $answer;
	$names->('127.0.0.1 dead.test', '127.0.0.3 dead.test');
	$answer = $client->call('environmentExecute', $run->('dead.test', $first, 'true'));
	is_error($answer, '08001', qr/dead\.test:\d+: /, '... and of which none does');
	like($answer->{error}{data}{detail}, qr/^127\.0\.0\.1: no answer\n127\.0\.0\.3: Connection refused$/, '... with what each of them did');

	# The pooled connection is busy, so that the next command needs another one.
	my $second = EnvrtFixture::Sshd->new(addresses => ['127.0.0.3'], host_keys => ['ed25519'], max_sessions => 1);
	$second->{port} = $first->port;
	$second->start;
	my $held = 'until [ -e ended ]; do sleep 0.1; done; echo ended';
	$names->('127.0.0.5 moving.test');
	my $id = $client->send_call('environmentExecute', $run->('moving.test', $first, "touch begun; $held"));
	wait_until('the command runs', sub { -e "$first->{directory}/home/begun" });
	$names->('127.0.0.3 moving.test');
	$answer = $client->call('environmentExecute', $run->('moving.test', $first, 'echo $SSH_CONNECTION'));
	like($answer->{result}{stdout}, qr/ 127\.0\.0\.3 \d+$/, 'a name that has moved is looked up for a new connection') or diag explain $answer;
	spew("$first->{directory}/home/ended", '');
	is($client->answer($id)->{result}{stdout}, "ended\n", '... and the command on the old one goes on');
	$second->stop;
	$first->stop;
	close $_ for $deaf, @waiting;
	is($far->terminate, 0, '... the host ends in order');
}

# A host key that changes while a connection is pooled.
{
	my $directory = temporary_directory();
	EnvrtFixture::run_command('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', "$directory/$_") for 'old', 'new';
	my $server = EnvrtFixture::Sshd->new(addresses => ['127.0.0.1'], host_keys => [], max_sessions => 1, extra => [qq(HostKey "$directory/old")])->start;
	my $known = "[127.0.0.1]:@{[$server->port]} " . slurp("$directory/old.pub");
	my $client = $host->connect;
	my $run = sub {
		my ($script) = @_;
		my $base = HostTest::request(ssh_config($server, knownHosts => $known), connect => 1500);

		return { %$base, command => 'sh', args => [ '-c', $script ], lease => { providerLeaseId => 'x', metadata => { remoteCwd => "$server->{directory}/home" } } };
	};
	my $id = $client->send_call('environmentExecute', $run->('touch begun; until [ -e ended ]; do sleep 0.1; done; echo ended'));
	wait_until('the command runs', sub { -e "$server->{directory}/home/begun" });
	$server->{options}{extra} = [qq(HostKey "$directory/new")];
	kill 'TERM', $server->pid;
	waitpid $server->pid, 0;
	$server->start;
	my $answer = $client->call('environmentExecute', $run->('echo no'));
	is_error($answer, '08006', qr/timed out after 1500 ms/, 'a command waits for a connection while the server has another key');
	like($answer->{error}{data}{detail} // '', qr/key/, '... and is told of that') or diag explain $answer;
	spew("$server->{directory}/home/ended", '');
	is($client->answer($id)->{result}{stdout}, "ended\n", '... and a command on the old one goes on');
	$answer = $client->call('environmentExecute', $run->('echo on'));
	is($answer->{result}{stdout}, "on\n", '... as the old one does') or diag explain $answer;
	$server->stop;
}

# Servers without a shell, as for sftp in a directory of its own.
{
	my $server = EnvrtFixture::Sshd->new(extra => ['ForceCommand internal-sftp'])->start;
	my $params = { %{ HostTest::request(ssh_config($server)) }, command => 'true', args => [], lease => { providerLeaseId => 'x', metadata => { remoteCwd => '/' } } };

	$answer = $host->acquire(ssh_config($server));
	is_error($answer, '38000', qr/This service allows sftp connections only/, 'an acquire where there is no shell');
	$answer = $host->call('environmentExecute', $params);
	is_error($answer, '38000', qr/This service allows sftp connections only/, '... and a command');
	$server->stop;
	$answer = with_login_output('ForceCommand echo "/bin/bash: No such file or directory" >&2; exit 1');
	is_error($answer, '38000', qr{failed with status 1: /bin/bash: No such file or directory$}, 'a shell that is not in the directory');
}

# Paths that are longer than systems take.
{
	my $long = '/' . join '/', ('x' x 200) x 21;
	my $params = { %{ HostTest::request(ssh_config($sshd)) }, command => 'true', args => [], lease => { providerLeaseId => 'x', metadata => { remoteCwd => "$sshd->{directory}/home" } } };

	is_error($host->acquire(ssh_config($sshd, remoteWorkspacePath => $long)), '22023', qr/path must not be longer than 1400 bytes\.$/, 'a workspace of 4,000 bytes');
	is_error($host->call('environmentExecute', { %$params, cwd => $long }), '22023', qr/^cwd "\/x+/, 'a cwd');
	is($host->call('environmentExecute', { %$params, command => $long })->{result}{exitCode}, 127, 'a command');
	for my $method (qw(environmentPushFiles environmentPullFiles))
	{
		is_error($host->call($method, { %$params, localPath => "$sshd->{directory}/home", remotePath => substr $long, 1 }), '22023', qr/^remotePath is too long$/, "$method: there");
		is_error($host->call($method, { %$params, localPath => $long, remotePath => 'x' }), '22023', qr/^localPath is too long$/, '... and here');
	}
}

# A session that was idle for long and whose server does not answer is replaced.
SKIP:
{
	skip 'takes 20 s; set ENVRT_SLOW_TESTS', 2 if !$ENV{ENVRT_SLOW_TESTS};
	my $sleepy = EnvrtFixture::Sshd->new->start;

	ok($host->acquire(ssh_config($sleepy))->{result}, 'an acquire');
	wait_until('its session has been idle for 15 s',
		sub { grep { $_->{port} == $sleepy->port && $_->{idleSince} && time * 1000 - $_->{idleSince} > 15_100 } @{ $host->stats->{sshSessions} } });
	kill 'STOP', $sleepy->sessions;
	my $took = elapsed(sub { $answer = $host->acquire(ssh_config($sleepy)) });
	ok($answer->{result} && $took < 4, 'a session that has died in its sleep is replaced');
	kill 'CONT', $sleepy->sessions;
}

is($host->terminate, 0, 'SIGTERM ends it in order');
unlike($host->log_text, qr/Sanitizer|runtime error/, 'no finding of a sanitizer');
done_testing();
