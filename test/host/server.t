#!/usr/bin/perl
# The driver host's own life: its socket, its lock, its launcher, and clients that misbehave.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use Socket;
use Test::More;

my $host = start_host();
my $sshd = EnvrtFixture::Sshd->new->start;
my $directory = $host->{directory};

# Files and hardening.
is((stat "$directory/envrt_host.sock")[2] & 0777, 0700, 'the socket is for its user alone');
is((stat "$directory/envrt_host.lock")[2] & 0777, 0600, 'the lock file too');
like(slurp("/proc/$host->{pid}/limits"), qr/^Max core file size\s+0\s+0/m, 'no core dumps')
  if -r "/proc/$host->{pid}/limits";
is(slurp("/proc/$host->{pid}/oom_score_adj"), "1000\n", 'the OOM killer takes it first');

# Clients that break the protocol lose their connection, and nobody else does.
my $other = $host->connect;
my %broken = (
	'no JSON' => "junk\n",
	'invalid UTF-8' => "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}\n",
	'no JSON-RPC' => "{}\n",
	'an array' => "[]\n",
	'an answer to no request' => "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}\n");
for my $name (sort keys %broken)
{
	my $client = $host->connect;

	$client->send_bytes($broken{$name});
	ok($client->is_closed, "$name ends the connection");
}
{
	my $client = $host->connect;
	my $chunk = 'x' x 1048576;

	local $SIG{PIPE} = 'IGNORE';
	for (1 .. 17) { last if !$client->send_bytes($chunk) }
	ok($client->is_closed, 'an endless line ends the connection');

	$client = $host->connect;
	$client->send_bytes('{"jsonrpc":"2.0","id":1,"meth');
	is($other->call('envrt/ping', {})->{result}, undef, 'half a line disturbs nobody');
	$client->send_bytes("od\":\"envrt/ping\"}\n");
	ok(exists $client->answer(1)->{result}, '... and may be completed');

	# Answers that nobody reads.
	$client = $host->connect;
	$client->{socket}->blocking(0);
	my $ping = qq({"jsonrpc":"2.0","id":"@{['x' x 60000]}","method":"envrt/ping"}\n);
	my $sent = 0;
	my $gone = 0;
	my $deadline = time + 60;
	while (!$gone && time < $deadline)
	{
		my $n = syswrite $client->{socket}, $ping, length($ping) - $sent % length $ping, $sent % length $ping;

		if (defined $n) { $sent += $n }
		elsif ($!{EAGAIN}) { sleep 0.005 }
		else { $gone = 1 }
	}
	ok($gone, 'a client that reads no answer is dropped');
	cmp_ok($sent, '<', 64 * 1024 * 1024, '... before much has piled up');
	is($other->call('envrt/ping', {})->{result}, undef, '... and others go on');
	ok($other->call('environmentAcquireLease', HostTest::request(ssh_config($sshd)))->{result},
		'... also with work');
}

# Many clients that come and go.
{
	my @crowd = map { $host->connect } 1 .. 200;
	my $good = grep { !defined $_->call('envrt/ping', {})->{result} } @crowd;

	is($good, 200, 'two hundred clients at once');
	$_->close for @crowd;
}

# Deep and odd params.
is_error($host->call('environmentProbe', []), '22023', qr/driverKey/, 'params that are a list');
is_error($host->call('environmentProbe', { driverKey => 5 }), '22023', qr/driverKey/, 'a key that is a number');
is_error(
	$host->call('environmentProbe', { driverKey => 'ssh', config => [] }),
	'22023', qr/config is no object/, 'a config that is a list');

# One host per directory.
my $second = start_host(directory => $directory, may_fail => 1);
my $took = elapsed(sub { waitpid $second->{pid}, 0 });
is($? >> 8, 1, 'a second one for the directory gives up');
cmp_ok($took, '>', 1.5, '... after a while');
like(slurp("$directory/stderr"), qr/WARNING: another driver host holds envrt_host\.lock/, '... and says why');
EnvrtFixture::unregister($second);
is($other->call('envrt/ping', {})->{result}, undef, 'the first one goes on');

# A successor takes over from one that ends, and from one that was killed.
$second = start_host(directory => $directory, may_fail => 1);
is($host->terminate, 0, 'the first one ends');
wait_until('the second one serves', sub { eval { exists $second->call('envrt/ping', {})->{result} } });
pass('a successor that waits takes over');
kill 'KILL', $second->{pid};
waitpid $second->{pid}, 0;
EnvrtFixture::unregister($second);
ok(-S "$directory/envrt_host.sock", 'killed, it leaves its socket behind');
$host = start_host(directory => $directory);
ok(exists $host->call('envrt/ping', {})->{result}, '... which stops nobody');
is($host->terminate, 0, 'it ends in order');

# A long path, and a relative one.
{
	my $long = temporary_directory() . '/' . ('d' x 100) . '/' . ('e' x 100);

	system('mkdir', '-p', $long) == 0 or die;
	my $deep = start_host(directory => $long, may_fail => 1);
	wait_until('it listens', sub { -S "$long/envrt_host.sock" });
	pass('a directory with a path longer than a socket address');
	is($deep->terminate, 0, '... ends in order');
}

# The launcher's end of it.
$host = start_host(control => { maxCalls => 5 });
my $client = $host->connect;
print { $host->{control} } qq({"jsonrpc":"2.0","id":7,"method":"envrt/ping"}\n);
is(readline $host->{control}, qq({"jsonrpc":"2.0","id":7,"result":null}\n), 'ping over the control channel');
my $pid = delete $host->{pid};
EnvrtFixture::unregister($host);
$took = elapsed(sub { close $host->{control}; waitpid $pid, 0 });
is($?, 0, 'the end of the control channel ends it');
cmp_ok($took, '<', 1, '... at once');
ok($client->is_closed, '... and its connections');

# The postmaster's.
{
	pipe my $watched, my $held or die;
	my $path = temporary_directory();
	my $child = EnvrtFixture::spawn(
		sub {
			close $held;
			POSIX::dup2(fileno $watched, 20);
			open STDERR, '>', "$path/stderr";
			exec "$top/envrt_driver_host", '--directory', $path, '--postmaster-fd', 20;
		});
	close $watched;
	wait_until('it listens', sub { -S "$path/envrt_host.sock" });
	$took = elapsed(sub { close $held; waitpid $child, 0 });
	is($?, 0, 'the end of the postmaster ends it');
	cmp_ok($took, '<', 1, '... at once');
}

# With a launcher it serves nobody before it has its settings.
{
	my $waiting = start_host(control => {}, unconfigured => 1);
	my $control = $waiting->{control};

	print $control '{"jsonrpc":"2.0","id":7,"method":"envrt/ping"}', "\n";
	like(scalar readline $control, qr/"id": ?7/, 'it answers the launcher');
	ok(!-S "$waiting->{directory}/envrt_host.sock", 'and does not listen before its settings');
	$waiting->configure;
	ok(-S "$waiting->{directory}/envrt_host.sock", 'but with the answer to them');
}

# Arguments.
is(system("'$top/envrt_driver_host' >/dev/null 2>&1") >> 8, 2, 'no directory');
is(system("'$top/envrt_driver_host' --directory / --control-fd 999 2>/dev/null") >> 8, 2, 'a bad descriptor');
is(system("'$top/envrt_driver_host' --directory /nonexistent 2>/dev/null") >> 8, 1, 'no such directory');

done_testing();
