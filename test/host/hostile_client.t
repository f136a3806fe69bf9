#!/usr/bin/perl
# A client that does its worst (big, deep, wide, malformed, slow) has the event loop for a moment at a
# time: whoever else asks is answered.  The host measures its own turns: in CPU time, which is asserted, and
# by the clock, which on a busy machine has what others do as well, and is printed.
# ENVRT_HOSTILE_SECONDS says for how long (10; `make check-hostile` takes a minute).

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use MIME::Base64;
use POSIX ();
use Socket;
use Test::More;

my $seconds = $ENV{ENVRT_HOSTILE_SECONDS} // 10;
# Sanitizers make everything slower, most of all what touches much memory.
my $most = ($ENV{ENVRT_DRIVER_HOST} // '') =~ /address/ ? 1000 : 50;
my $json = JSON::PP->new->utf8;

sub line
{
	my ($method, $params) = @_;

	return $json->encode({ jsonrpc => '2.0', id => 1, method => $method, params => $params }) . "\n";
}

sub ssh_execute
{
	return line('environmentExecute',
		{ driverKey => 'ssh', companyId => 'hostile', config => { host => 'x' }, lease => {}, command => 'true', @_ });
}

# Plugins that answer what they are told to, and read what they are sent: one for each attack, since a
# worker that is ended for it leaves its plugin waiting for a while.
my $plugins = temporary_directory();
my @plugins;

sub plugin_call
{
	my (%config) = @_;
	my $key = 'rude' . @plugins;

	push @plugins, $key;
	mkdir "$plugins/$key";
	spew("$plugins/$key/manifest.json",
		$json->encode({
			id => $key, version => '1', capabilities => ['environment.drivers.register'], entrypoints => { worker => 'worker' },
			environmentDrivers => [ { driverKey => $key, kind => 'sandbox_provider' } ]
		}));
	spew("$plugins/$key/worker", slurp("$FindBin::RealBin/plugins/rude/worker"), 0755);
	return line('environmentProbe', { driverKey => $key, companyId => 'hostile', environmentId => 'e', config => \%config });
}

sub plugin_answer
{
	my ($json, $one, $times) = @_;

	return plugin_call(act => 'raw', hex => unpack('H*', '{"jsonrpc":"2.0","id":ID,"result":' . $json . '}'), one => unpack('H*', $one), times => $times);
}

my $around = '{"jsonrpc":"2.0","id":1,"method":"envrt/ping","params":{"x":';
my %attack = (
	'a string of 15 MB' => $around . '"' . 'y' x 15_000_000 . "\"}}\n",
	'15 MB of stdin' => ssh_execute(stdin => 'z' x 15_000_000),
	'11 MB of stdin in base64' => ssh_execute(stdinBase64 => encode_base64('z' x 8_000_000, '')),
	'10,000 arguments' => ssh_execute(args => [ ('a' x 200) x 10_000 ]),
	'10 MB of arguments' => ssh_execute(args => [ ('a' x 1000) x 10_000 ]),
	'10,000 variables' => ssh_execute(env => { map { ("V$_" => 'x' x 100) } 1 .. 10_000 }),
	'19,000 values' => line('environmentProbe', { driverKey => 'ssh', config => { map { ("k$_" => {}) } 1 .. 19_000 } }),
	'5,000,000 values' => $around . '[' . join(',', (1) x 5_000_000) . "]}}\n",
	'2,000 levels' => $around . '[' x 2000 . ']' x 2000 . "}}\n",
	'8,000,000 levels' => $around . '[' x 8_000_000 . "\n",
	'no JSON' => "\0\xff{[\"" x 10 . "\n",
	'15 MB of no JSON' => '"' x 15_000_000 . "\n",
	'a line without an end' => 'x' x 17_000_000,
	'10,000 pings' => line('envrt/ping', {}) x 10_000,
	'200 statistics' => line('envrt/stats', {}) x 200,
	'15 MB to a plugin' => plugin_call(act => 'pid', more => 'y' x 15_000_000),
	'15 MB from a plugin' => plugin_answer('"MANY"', 'x', 15_000_000),
	'200,000 values from a plugin' => plugin_answer('[MANY0]', '0,', 200_000),
	'15 MB from a plugin that are to be mended' => plugin_answer('"\ud83dMANY"', 'x', 15_000_000),
	'5,000,000 values from a plugin' => plugin_answer('[MANY0]', '0,', 5_000_000),
	'17 MB from a plugin' => plugin_answer('"MANY"', 'x', 17_000_000),
	'15 MB of no JSON from a plugin' => plugin_answer('"MANY', '"', 15_000_000),
	'200,000 lines of no JSON from a plugin' => plugin_call(act => 'raw', hex => unpack('H*', 'MANY{"jsonrpc":"2.0","id":ID,"result":1}'), one => unpack('H*', "-\n"), times => 200_000),
	'200,000 messages from a plugin' => plugin_call(
		act => 'raw', hex => unpack('H*', 'MANY{"jsonrpc":"2.0","id":ID,"result":1}'),
		one => unpack('H*', qq({"jsonrpc":"2.0","method":"log","params":{"level":"debug","message":""}}\n)), times => 200_000),
	'200,000 requests from a plugin' => plugin_call(
		act => 'raw', hex => unpack('H*', 'MANY{"jsonrpc":"2.0","id":ID,"result":1}'),
		one => unpack('H*', qq({"jsonrpc":"2.0","id":1,"method":"state.get","params":{}}\n)), times => 200_000),
	'2,000 calls' => line('environmentProbe', { driverKey => 'ssh', config => {} }) x 2000);

my $host = start_host(control => { maxCalls => 500 }, plugins => [$plugins]);

# What the host says of its loop, since the last time.
sub loop
{
	return $host->connect->call('envrt/stats', { resetLoop => JSON::PP::true })->{result}{host}{loop};
}

# Each attacker goes on until it is ended.
sub attack
{
	my ($bytes, $slow) = @_;

	return EnvrtFixture::spawn(
		sub {
			local $SIG{PIPE} = 'IGNORE';
			while (1)
			{
				my $client = eval { $host->connect } or next;

				if ($slow)
				{
					for my $byte (split //, $bytes) { last if !$client->send_bytes($byte); sleep 0.001 }
				}
				else
				{
					$client->{socket}->blocking(0);
					for (my $sent = 0; $sent < length $bytes;)
					{
						my $n = syswrite $client->{socket}, $bytes, 1048576, $sent;
						last if !defined $n && !$!{EAGAIN};
						$sent += $n // 0;
						# Whoever does not read his answers is dropped.
						1 while sysread $client->{socket}, my $answers, 1048576;
						sleep 0.001 if !defined $n;
					}
					my $until = time + 1;
					while (time < $until)
					{
						my $n = sysread $client->{socket}, my $answers, 1048576;
						last if defined $n && $n == 0 || !defined $n && !$!{EAGAIN};
						last if defined $n && $answers =~ /\n\z/;
						sleep 0.001 if !defined $n;
					}
				}
				$client->close;
			}
		});
}

my $wall = 0;

sub pings_for
{
	my ($time) = @_;
	my $until = time + $time;

	while (time < $until)
	{
		my $took = elapsed(sub { $host->control('envrt/ping', {}) });

		$wall = $took if $took > $wall;
		sleep 0.01;
	}
	return;
}

# The start of a worker is a fork, which takes its time by the memory that the host has then.
for my $key (@plugins)
{
	my $answer = $host->call('environmentProbe', { driverKey => $key, companyId => 'hostile', environmentId => 'e', config => { act => 'pid' } });
	like($answer->{result}, qr/^\d+$/, "$key runs");
}
loop();
for my $name (sort keys %attack)
{
	my $attacker = attack($attack{$name});

	pings_for($seconds / (2 * keys %attack));
	kill 'KILL', $attacker;
	waitpid $attacker, 0;
	my $loop = loop();
	my $cpu = $loop->{longestCpuUs} / 1000;
	note sprintf '%s: the longest turn took %.1f ms of CPU time, %.1f ms by the clock', $name, $cpu, $loop->{longestUs} / 1000;
	cmp_ok($cpu, '<=', $most, "$name: the loop is nobody's for more than $most ms");
}

# All at once, but those for which workers are ended: what a start takes (see above) is measured with nothing of theirs.
my @attackers = ((map { attack($attack{$_}) } grep { !/no JSON from a plugin/ } keys %attack), attack($attack{'10,000 pings'}, 1));
my $other = $host->connect;
my $answered = 0;
my $until = time + $seconds / 2;
while (time < $until)
{
	pings_for(0.2);
	$answered++ if ($other->call('environmentProbe', { driverKey => 'ssh', companyId => 'other', config => {} })->{error} // {})->{message};
}
kill 'KILL', @attackers;
waitpid $_, 0 for @attackers;
my $loop = loop();
note sprintf 'all at once: the longest turn took %.1f ms of CPU time, %.1f ms by the clock', $loop->{longestCpuUs} / 1000, $loop->{longestUs} / 1000;
note sprintf 'the longest ping took %.1f ms', 1000 * $wall;
cmp_ok($loop->{longestCpuUs} / 1000, '<=', 2 * $most, 'all at once: it is, to the sum of what clients have begun');
cmp_ok($answered, '>', 0, 'another client is answered meanwhile');
ok($host->is_alive, 'the host goes on');
is($host->terminate, 0, '... and ends in order');

done_testing();
