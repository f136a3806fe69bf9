#!/usr/bin/perl
# Plugins: their manifests, their workers, and workers that misbehave.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use POSIX ();
use Test::More;

my $json = JSON::PP->new->utf8->canonical;
my $rude = "$FindBin::RealBin/plugins";
my $journals = "$top/test/plugins";
my $directory = temporary_directory();

mkdir "$directory/knobs";

sub knob
{
	my ($name, $text) = @_;

	return unlink "$directory/knobs/$name" if !defined $text;
	spew("$directory/knobs/$name", $text);
	return;
}

sub params
{
	my (%other) = @_;

	return {
		driverKey => 'journal',
		companyId => 'company-1',
		environmentId => 'environment-1',
		config => { provider => 'journal', directory => $directory },
		%other
	};
}

sub act
{
	my ($act, %other) = @_;

	return params(driverKey => 'rude', config => { act => $act }, %other);
}

# The rude one is to say this, with three million of one for MANY.
sub raw
{
	my ($line, $one) = @_;

	return act('raw', config => { act => 'raw', hex => unpack('H*', $line), one => unpack('H*', $one // ''), times => 3_000_000 });
}

sub plugin_stats
{
	my ($host, $key) = @_;

	return (grep { $_->{key} eq $key } @{ $host->stats->{plugins} })[0];
}

sub is_running
{
	my ($pid) = @_;
	my $stat = eval { slurp("/proc/$pid/stat") } // return 0;

	return $stat !~ /^\d+ \(.*\) Z/;
}

# A folder with a plugin in it, made of the rude one.
sub plugin_folder
{
	my ($path, $manifest, $mode) = @_;

	mkdir $path;
	spew("$path/manifest.json", ref $manifest ? $json->encode($manifest) : $manifest);
	spew("$path/worker", slurp("$rude/rude/worker"), 0755);
	spew("$path/mode", $mode) if defined $mode;
	return;
}

sub manifest
{
	my ($id, %other) = @_;

	return {
		id => $id,
		version => '1',
		capabilities => ['environment.drivers.register'],
		entrypoints => { worker => 'worker' },
		environmentDrivers => [ { driverKey => $id, kind => 'sandbox_provider' } ],
		%other
	};
}

#######################################################################
# A plugin that behaves
#######################################################################
my $host = start_host(plugins => [ $journals, $rude ]);

is_deeply($host->stats->{plugins}, [], 'plugins are not looked for before one is needed');
{
	my $answer = $host->call('environmentProbe', params());
	my $plugin = plugin_stats($host, 'envrt.journal');

	is($answer->{result}{summary}, "The journal is in $directory.", 'a probe');
	is($plugin->{state}, 'running', 'its worker runs');
	is($plugin->{restarts}, 0, '... for the first time');
	is($plugin->{calls}, 1, '... and was called once');
	is($plugin->{activeCalls}, 0, '... and is idle');
	is($plugin->{version}, '1.0.0', '... version');
	is(plugin_stats($host, 'envrt.journal-keyed')->{state}, 'idle', 'others are not started');

	my $pid = $plugin->{pid};
	my %environment = map { split /=/, $_, 2 } split /\0/, slurp("/proc/$pid/environ");
	is_deeply([ sort keys %environment ], [qw(NODE_ENV NODE_PATH PAPERCLIP_PLUGIN_ID PATH TZ)],
		'its environment is these five');
	is($environment{PAPERCLIP_PLUGIN_ID}, 'envrt.journal', '... with its id');
	is("$environment{NODE_ENV} $environment{TZ}", 'production UTC', '... and constants');
	opendir my $fds, "/proc/$pid/fd" or die $!;
	is_deeply([ sort grep { !/^\./ } readdir $fds ], [ 0, 1, 2 ], 'it inherits no descriptor');
	my @stat = split / /, slurp("/proc/$pid/stat") =~ s/^.*\) //r;
	is($stat[2], $pid, 'a process group of its own');
	is($stat[3], $pid, '... and a session');
	like(slurp("/proc/$pid/limits"), qr/^Max core file size\s+0\s+0/m, 'no core dumps');
	# Perl itself ignores SIGFPE; the worker ignores SIGPIPE.
	like(slurp("/proc/$pid/status"), qr/^SigBlk:\s+0+$/m, 'no signal is blocked');
	like(readlink "/proc/$pid/cwd", qr{/test/plugins/journal$}, 'its directory is the folder');
}
{
	my $answer = $host->call('environmentAcquireLease', params());
	my $lease = $answer->{result};

	like($lease->{providerLeaseId}, qr{^journal://}, 'an acquire without a leaseId');
	is("$lease->{pluginKey} $lease->{pluginVersion}", 'envrt.journal 1.0.0', '... names the plugin');
	like($lease->{metadata}{remoteCwd}, qr{^/workspace/}, '... passes through');
	is($host->call('environmentReleaseLease', params(providerLeaseId => $lease->{providerLeaseId}))->{result},
		undef, 'a release');
	knob('expires-in', 60);
	$lease = $host->call('environmentAcquireLease', params())->{result};
	like($lease->{expiresAt}, qr/^\d{4}-.*Z$/, 'a lease that expires');
	knob('expires-in');
	my $other = $host->call('environmentResumeLease', params(providerLeaseId => $lease->{providerLeaseId}));
	is($other->{result}{pluginKey}, 'envrt.journal', 'a resume names the plugin too');
	is_error($host->call('environmentResumeLease', params(providerLeaseId => 'journal://x')),
		'38000', qr{^Lease journal://x not found \x{2014} cannot resume$}, 'an error of the worker');
	knob('acquire-fail', 1);
	$answer = $host->call('environmentAcquireLease', params());
	is($answer->{error}{data}{outcome}, 'unknown', 'an acquire that failed, of a plugin that can be asked');
	$answer = $host->call('environmentAcquireLease', params(driverKey => 'journal-blind'));
	ok($answer->{result}, 'the blind one makes leases too');
	knob('acquire-fail', 1);
	$answer = $host->call('environmentAcquireLease', params(driverKey => 'journal-blind'));
	is($answer->{error}{data}{outcome}, 'absent', '... its error is all there is to know');
	knob('acquire-fail', 1);
	$answer = $host->call('environmentAcquireLease', params(driverKey => 'journal-keyed'));
	is($answer->{error}{data}{outcome}, 'unknown', '... and that of the keyed one is not');
	$answer = $host->call('environmentExecute', params());
	is_error($answer, '38000', qr/^environmentExecute is not implemented by this plugin$/, 'no such method');
	is($answer->{error}{code}, -32004, '... has its code');
}

# Which plugin.
{
	my $answer = $host->call('environmentProbe', params(driverKey => 'no-such'));

	is_error($answer, '42704',
		qr/^Sandbox provider "no-such" is not registered as a built-in provider and no matching plugin is available\.$/,
		'an unknown provider');
	is_error($host->call('environmentProbe', params(driverKey => 'rude-machine')),
		'42704', qr/^Sandbox provider "rude-machine" is not/, 'no sandbox provider');
	ok($host->call('environmentProbe', act('echo', driverKey => 'rude-machine', pluginKey => 'envrt.rude'))->{result},
		'... but found by its plugin');
	is_error($host->call('environmentProbe', params(pluginKey => 'envrt.rude')),
		'42704', qr/^Plugin "envrt\.rude" does not declare environment driver "journal"\.$/, 'not of this plugin');
	is_error($host->call('environmentProbe', params(pluginKey => 'nobody')),
		'42704', qr/^Plugin environment driver "nobody:journal" is not ready\.$/, 'no such plugin');
	is_error($host->call('environmentProbe', params(driverKey => 'ssh', config => {})),
		'22023', qr/./, 'the built-in driver comes first');
	is_error($host->call('environmentProbe', params(driverKey => 'ssh', pluginKey => 'envrt.rude')),
		'42704', qr/^Plugin "envrt\.rude"/, '... unless a plugin is named');
	$answer = $host->call('environmentAcquireLease', params(driverKey => 'no-such'));
	is($answer->{error}{data}{outcome}, 'absent', 'what nobody was asked to make is absent');
}

# What is forwarded.
{
	my $answer = $host->call(
		'environmentProbe',
		act('echo',
			pluginKey => 'envrt.rude',
			leaseId => 'k',
			fence => 12,
			hostInstance => 'x',
			keep => JSON::PP::true,
			limits => { callMs => 5000 },
			extra => [ 1, "\x{fc}\n" ]));

	is_deeply(
		$answer->{result},
		{
			driverKey => 'rude',
			companyId => 'company-1',
			environmentId => 'environment-1',
			config => { act => 'echo' },
			leaseId => 'k',
			fence => 12,
			extra => [ 1, "\x{fc}\n" ]
		},
		'params, without the host\'s own');
}

# The host itself.
{
	my $hello = $host->call('envrt/hello', {})->{result};

	like($hello->{instance}, qr/^[0-9a-f]{32}$/, 'the host has a name');
	is($hello->{pid}, $host->{pid}, '... and tells its process');
	is($host->call('envrt/hello', {})->{result}{instance}, $hello->{instance}, '... the same each time');
	ok(abs($hello->{startedAt} / 1000 - time) < 600, '... and when it came');
}

#######################################################################
# Workers that misbehave
#######################################################################

# Many at once, in any order.
{
	my $client = $host->connect;
	my @ids = map { $client->send_call('environmentProbe', act('order')) } 1 .. 2;

	is($client->answer($ids[1])->{result}, 'second', 'answers out of order');
	is($client->answer($ids[0])->{result}, 'first', '... find their calls');
	@ids = map { $client->send_call('environmentProbe', act('echo', n => $_, blob => 'x' x 20000)) } 1 .. 300;
	is(scalar(grep { $client->answer($ids[ $_ - 1 ])->{result}{n} == $_ } 1 .. 300), 300, 'three hundred at once');
	my $big = $client->call('environmentProbe', act('echo', blob => 'x' x 8_000_000));
	is(length $big->{result}{blob}, 8_000_000, 'a long line');
}

# Ends, and floods.
sub lost
{
	my ($act, $how) = @_;
	my $before = plugin_stats($host, 'envrt.rude');
	my $client = $host->connect;
	my $bystander = $host->connect;
	my $waiting = $bystander->send_call('environmentProbe', act('never'));

	# (Else the other call could overtake it.)
	wait_until('it is asked', sub { plugin_stats($host, 'envrt.rude')->{activeCalls} > 0 });
	my $answer = $client->call('environmentProbe', act($act), 20);
	my $after = plugin_stats($host, 'envrt.rude');

	is_error($answer, '38000', qr/^Plugin "envrt\.rude" worker ended during the call$/, "$act: the call fails");
	is($answer->{error}{data}{outcome}, 'unknown', '... and its outcome is not known');
	is_error($bystander->answer($waiting), '38000', qr/ended during the call/, '... and so do others');
	like($after->{lastError}, $how, '... for this reason');
	ok(!is_running($before->{pid}), '... and the worker is gone') if $before->{pid};
	return $answer;
}
{
	my @acts = (
		'half for good' => qr/exited with status 5/,
		'much junk' => qr/floods its output with what is no message/,
		'many strangers' => qr/answers what it was not asked, again and again/,
		exit => qr/exited with status 3/,
		kill => qr/ended by signal 9/,
		mute => qr/closed its output/,
		parent => qr/exited with status 4/);

	while (my ($act, $how) = splice @acts, 0, 2)
	{
		# A host of its own for each, since crashes in a row are made to wait.
		$host->terminate;
		$host = start_host(plugins => [ $journals, $rude ]);
		$host->call('environmentProbe', act('echo'));
		lost($act, $how);
	}
	my $log = $host->log_text;
	is(scalar(() = $log =~ /its worker/g), 1, 'the log has one line of it') or diag $log;
	$host->terminate;
	$host = start_host(plugins => [ $journals, $rude ]);
	is($host->call('environmentProbe', act('last words'))->{result}, 'said', 'the last words of a worker are heard');
	wait_until('it is gone', sub { !plugin_stats($host, 'envrt.rude')->{pid} });
	my $client = $host->connect;
	my $bystander = $client->send_call('environmentProbe', act('order'));
	is($host->call('environmentProbe', act('twice'))->{result}, 1, 'an answer to what is answered already');
	is($host->call('environmentProbe', act('junk'))->{result}, 'after junk', 'lines that are no messages');
	is($host->call('environmentProbe', act('stranger'))->{result}, 'after strangers', 'answers with unknown ids');
	is($host->call('environmentProbe', act('nobody'))->{result}, 'after nobody', 'an answer to nobody');
	is($host->call('environmentProbe', act('order'))->{result}, 'second', '... cost nothing');
	is($client->answer($bystander)->{result}, 'first', '... and nobody else');
	like(slurp($host->{stderr}), qr/^LOG: plugin "envrt\.rude": on its output: this is no JSON$/m, '... but are logged');
}

# A line that can't be used costs at most the call whose id it carries.
{
	my $largest = 1.7976931348623157e308;
	my $client = $host->connect;
	my $bystander = $client->send_call('environmentProbe', act('order'));
	my $answer = '{"jsonrpc":"2.0","id":ID,"result":';
	my $pid = plugin_stats($host, 'envrt.rude')->{pid};
	my @lines = (
		'half of a pair' => [ $answer . '["\ud83d","\ude00","\ud83dx","\ud83d\ud83d\ude00","\\\\ud83d"]}', [ "\x{fffd}", "\x{fffd}", "\x{fffd}x", "\x{fffd}\x{1f600}", '\\ud83d' ] ],
		'bytes that are no text' => [ $answer . qq(["\xff\xfe","\xed\xa0\xbd","\xc3\xbc"]}), [ "\x{fffd}\x{fffd}", "\x{fffd}\x{fffd}\x{fffd}", "\x{fc}" ] ],
		'control characters' => [ $answer . qq("a\x01b\tc\x1f\x7f"}), "a\x01b\tc\x1f\x7f" ],
		'integers beyond 64 bits' => [ $answer . '[9223372036854775807,9223372036854775808,-1e2,-123456789012345678901234567890]}', [ 9223372036854775807, 9223372036854775808, -100, -1.2345678901234568e29 ] ],
		'numbers beyond a double' => [ $answer . '[1e999,-1e999,1e-999,' . ('9' x 400) . ']}', [ $largest, -$largest, 0, $largest ] ],
		'what Python writes' => [ $answer . '[NaN,Infinity,-Infinity,"NaN"]}', [ undef, $largest, -$largest, 'NaN' ] ],
		'zero bytes' => [ $answer . qq(["a\x00b","\\u0000"]}), [ "a\0b", "\0" ] ],
		'a log line that is an object' => [ qq({"level":30,"id":ID,"msg":"done"}\n{ event: 1 }\n{"jsonrpc":"1.0","id":ID,"error":"x"}\n$answer"logged"}), 'logged' ],
		'lines that begin like messages' => [ qq({\n{"jsonrpc":"2.0","method":"log"\n{"jsonrpc":"2.0"\n"}{\n$answer"begun"}), 'begun' ],
		'half a line' => [ $answer, qr/can't be used: the message ends too early/ ],
		'deep nesting' => [ $answer . ('[' x 100_000) . (']' x 100_000) . '}', qr/can't be used: the message is nested too deeply/ ],
		'the same key twice' => [ $answer . '{"a":1,"a":2}}', qr/can't be used: the message has an object with the same key twice/ ],
		'two answers in one' => [ $answer . '1,"error":{"code":1,"message":"m"}}', qr/can't be used: the response has a result and an error/ ],
		'an error that is none' => [ '{"jsonrpc":"2.0","id":ID,"error":"boom"}', qr/can't be used: the response's error is not an object/ ],
		'its id at the end' => [ '{"result":[{"id":1,"jsonrpc":"x"}],,"jsonrpc" : "2.0","id" :ID }', qr/can't be used: the message is not valid JSON/ ],
		'too many values' => [ $answer . '[' . ('1,' x 300_000) . '1]}', qr/can't be used: the message has too many values/ ],
		'more than a line' => [ $answer . '"MANY"}', qr/can't be used: the message is longer than 16 MiB/, '\u0001' ],
		# What is mended can be more than a line of ours.
		'control characters that grow' => [ $answer . '"MANY"}', qr/^the driver's answer is too long$/, "\x01" ]);

	while (my ($name, $case) = splice @lines, 0, 2)
	{
		my ($line, $expected, $one) = @$case;
		my $got = $host->call('environmentProbe', raw($line, $one));

		if (ref $expected eq 'Regexp') { is_error($got, '38000', $expected, "$name: costs its call") }
		else { is_deeply($got->{result}, $expected, "$name: the call has its result") or diag explain $got }
	}
	is($host->call('environmentProbe', act('some strangers'))->{result}, 'after strangers', 'thousands of answers to nobody');
	is_deeply(
		$host->call('environmentProbe', act('bad request'))->{result},
		{ jsonrpc => '2.0', id => 'r', error => { code => -32600, message => 'the message has an object with the same key twice' } },
		'a request that is none is refused');
	is($host->call('environmentProbe', act('order'))->{result}, 'second', '... all of this costs nobody else anything');
	is($client->answer($bystander)->{result}, 'first', '... that has waited all the time');
	is(plugin_stats($host, 'envrt.rude')->{pid}, $pid, '... and the worker lives on');
	like(slurp($host->{stderr}), qr/^LOG: plugin "envrt\.rude": on its output: \{"level":30,"id":\d+,"msg":"done"\}$/m, '... and its log lines are logged');
}

# What a command's end can't be.
{
	my $methods = temporary_directory();

	plugin_folder("$methods/ends", manifest('ends'));
	spew("$methods/ends/worker", slurp("$FindBin::RealBin/plugins/rude/worker"), 0755);
	spew("$methods/ends/mode", 'methods environmentExecute');
	my $ends = start_host(plugins => [$methods]);
	my $end = sub {
		my ($exit_code, $more) = @_;

		return $ends->call('environmentExecute',
			{ %{ raw(qq({"jsonrpc":"2.0","id":ID,"result":{"exitCode":$exit_code,"timedOut":false,"stdout":"","stderr":""$more}})) }, driverKey => 'ends' });
	};

	is($end->($_, '')->{result}{exitCode}, $_, "exit code $_") for 7, -1, 2147483647, -2147483648;
	ok(exists $end->('null', '')->{result}, 'no exit code');
	ok($end->('7.0', '')->{result}{exitCode} == 7, 'a whole number that is written as a real');
	is_error($end->($_, ''), '38000', qr/can't be used: the exit code is no whole number of 32 bits/, "exit code $_ is none")
	  for 4294967296, 4294967299, -4294967296, 2147483648, '1.5', '1e400', '18446744073709551616', '"0"', 'false', '[]', '{}';
	is_error($end->(0, ',"signal":9'), '38000', qr/the signal is no text/, 'a signal that is a number');
	is_error($end->(0, ',"timedOut":"true"'), '38000', qr/same key twice|timedOut is neither/, 'a word that is given twice');
	$ends->terminate;
}

# Requests that were not sent wait for the next worker, and crashes in a row are made to wait.
$host->terminate;
$host = start_host(plugins => [ $journals, $rude ]);
{
	my $client = $host->connect;

	is_error($client->call('environmentProbe', act('exit')), '38000', qr/ended during/, 'a first crash');
	my $took = elapsed(sub { $client->call('environmentProbe', act('echo')) });
	cmp_ok($took, '<', 1, '... is forgiven at once');
	is(plugin_stats($host, 'envrt.rude')->{restarts}, 1, '... and counted');
	is_error($client->call('environmentProbe', act('exit')), '38000', qr/ended during/, 'a second one');
	my $answer = $client->call('environmentAcquireLease', act('echo', limits => { callMs => 300 }));
	is_error($answer, '38000', qr/^Plugin "envrt\.rude" has no running worker$/,
		'... is not: a call that could not wait for as long fails');
	is($answer->{error}{code}, -32000, '... has its code');
	is($answer->{error}{data}{outcome}, 'absent', '... and makes nothing');
	like($answer->{error}{data}{detail}, qr/exited with status 3/, '... and says why');
	is(plugin_stats($host, 'envrt.rude')->{state}, 'waiting', '... in this state');
	$took = elapsed(sub { ok($client->call('environmentProbe', act('echo'))->{result}, 'a call waits for the restart') });
	cmp_ok($took, '>', 0.5, '... for a while');
	cmp_ok($took, '<', 4, '... but no longer');
}

# A worker that takes too much memory.
{
	my $bounded = start_host(plugins => [$rude], control => { pluginMemoryMb => 100 });
	my $call = sub {
		my ($bytes, %other) = @_;

		return $bounded->call('environmentProbe', act('memory', config => { act => 'memory', bytes => $bytes, %other }));
	};

	is($call->(10_000_000)->{result}, 10_000_000, 'a worker has the memory that it is given');
	is($bounded->call('environmentProbe', act('memory', config => { act => 'reserve', bytes => 4_000_000_000 }))->{result}, 'reserved', '... and any address space')
	  if (POSIX::uname())[4] eq 'x86_64';
	is($call->(200_000_000, child => 1, hold => 1)->{result}, 'child ended by 9', '... and what it has started no more either');
	is(plugin_stats($bounded, 'envrt.rude')->{restarts}, 0, '... which does not cost the worker its life');
	like(slurp($bounded->{stderr}), qr/^WARNING: plugin "envrt\.rude": the largest process that its worker had started was killed/m, '... and is logged');
	is_error($call->(200_000_000, hold => 1), '38000', qr/ended during the call/, '... but its own memory does');
	like(plugin_stats($bounded, 'envrt.rude')->{lastError}, qr/took more memory than envrt\.plugin_memory/, '... and it is said why');
	$bounded->configure(pluginMemoryMb => 400);
	is($call->(200_000_000)->{result}, 200_000_000, '... unless the next one is given more');
	$bounded->terminate;
}

# Several companies and one worker.
{
	my $shared = start_host(plugins => [$rude], control => { pluginConcurrency => 12 });
	my $client = $shared->connect;
	my $of = sub { my ($company, $act, %other) = @_; return $client->send_call('environmentProbe', act($act, companyId => $company, %other)) };
	my $held = sub { return $shared->call('environmentProbe', act('held', companyId => 'watcher'))->{result} };

	is($shared->call('environmentProbe', act('echo', companyId => 'watcher'))->{result}{companyId}, 'watcher', 'a worker of several companies');
	my @greedy = map { $of->('greedy', 'hold') } 1 .. 20;
	wait_until('they are held', sub { $held->() == 9 });
	is($held->(), 9, 'one company has three quarters of the places');
	my $modest = $of->('modest', 'hold');
	wait_until('it is held', sub { $held->() == 10 });
	pass('... and another finds one');
	# Their askers go, and the worker does not know: it goes on.
	my $gone = $shared->connect;
	$gone->send_call('environmentProbe', act('hold', companyId => 'gone'));
	wait_until('it is asked', sub { plugin_stats($shared, 'envrt.rude')->{activeCalls} >= 22 });
	$gone->close;
	is($client->answer($of->('watcher', 'release', limits => { callMs => 20000 }))->{result}, 'released', 'they are let go');
	is($client->answer($modest)->{result}, 'held', '... and answered');
	$shared->call('environmentProbe', act('release', companyId => 'watcher')) while $held->() > 0 || plugin_stats($shared, 'envrt.rude')->{activeCalls} > 0;
	is(scalar(grep { $client->answer($_)->{result} eq 'held' } @greedy), 20, '... and so are those that waited');
	# A company for which the worker crashes waits, and others do not.
	my $pid = plugin_stats($shared, 'envrt.rude')->{pid};
	is_error($client->answer($of->('crasher', 'exit')), '38000', qr/ended during/, 'a call that ends the worker') for 1 .. 2;
	my $answer = $client->answer($of->('crasher', 'echo', limits => { callMs => 500 }));
	is_error($answer, '38000', qr/has no running worker/, '... a second time: its company has to wait');
	ok($client->answer($of->('innocent', 'echo', limits => { callMs => 20000 }))->{result}, '... and another has not');
	isnt(plugin_stats($shared, 'envrt.rude')->{pid}, $pid, '... with another worker');
	ok($client->answer($of->('crasher', 'echo', limits => { callMs => 20000 }))->{result}, '... nor has the first in the end');
	is_error($client->answer($of->('crasher', 'exit')), '38000', qr/ended during/, 'a third time');
	ok($client->answer($of->('innocent', 'echo', limits => { callMs => 20000 }))->{result}, '... costs another nothing');
	# Answers that never come are their company's loss.
	my @never = map { $of->('greedy', 'never', limits => { callMs => 100 }) } 1 .. 30;
	is(scalar(grep { ($client->answer($_)->{error}{message} // '') =~ /did not answer|no running worker|ended during/ } @never), 30, 'calls that are never answered');
	ok($client->answer($of->('innocent', 'echo', limits => { callMs => 20000 }))->{result}, '... leave the others theirs');
	$shared->terminate;
}

# A host that runs out of descriptors at each point of a start.
{
	my $scarce = start_host(plugins => [ $journals, $rude ]);
	my $client = $scarce->connect;
	my $limit = 3;
	my %said;
	my $limited = sub { system('prlimit', '--pid', $scarce->{pid}, "--nofile=$_[0]:") == 0 or die };

	ok($client->call('environmentProbe', params())->{result}, 'a host whose plugins are known');
	while ($limit < 100)
	{
		$limited->($limit++);
		my $answer = $client->call('environmentProbe', act('echo', limits => { callMs => 1000 }));
		last if $answer->{result};
		$limited->(100);
		$said{ $answer->{error}{message} }++;
		$client->call('envrt/restartPlugin', { key => 'envrt.rude' });
	}
	is_deeply([ keys %said ], ['Plugin "envrt.rude" has no running worker'], 'one that has no descriptors left for another worker');
	cmp_ok($limit, '>', 9, '... at each point of a start');
	cmp_ok($limit, '<', 100, '... goes on when it has them');
	$scarce->terminate;
}

# Time limits.
{
	my $client = $host->connect;
	my $answer;
	my $took = elapsed(sub { $answer = $client->call('environmentProbe', act('never', limits => { callMs => 200 })) });

	is_error($answer, '38000', qr/^Plugin "envrt\.rude" did not answer environmentProbe within 200 ms$/, 'no answer');
	is($answer->{error}{code}, -32003, '... has its code');
	is($answer->{error}{data}{outcome}, 'unknown', '... and its outcome is not known');
	cmp_ok($took, '<', 2, '... in time');
	my $pid = plugin_stats($host, 'envrt.rude')->{pid};
	ok($client->call('environmentProbe', act('echo'))->{result}, 'the worker goes on');
	my $id = $client->send_call('environmentProbe', act('order', limits => { callMs => 100 }));
	is_error($client->answer($id), '38000', qr/did not answer/, 'a call whose answer comes late');
	is($client->call('environmentProbe', act('order'))->{result}, 'second', '... is answered late');
	ok($client->call('environmentProbe', act('echo'))->{result}, '... and nobody minds');
	is(plugin_stats($host, 'envrt.rude')->{pid}, $pid, '... and the worker is the same');
	my $gone = $host->connect;
	$gone->send_call('environmentProbe', act('order'));
	wait_until('it is sent', sub { plugin_stats($host, 'envrt.rude')->{activeCalls} >= 2 });
	$gone->close;
	is($client->call('environmentProbe', act('order'))->{result}, 'second', 'a client that went away');
	is(plugin_stats($host, 'envrt.rude')->{pid}, $pid, '... changes nothing for the worker');
}

# A worker that answers nothing ever.
{
	my $client = $host->connect;
	my $pid = plugin_stats($host, 'envrt.rude')->{pid};

	# Some may not even be sent in that time.
	for (1 .. 20)
	{
		last if !is_running($pid);
		my @ids = map { $client->send_call('environmentProbe', act('never', limits => { callMs => 50 })) } 1 .. 250;
		$client->answer($_) for @ids;
	}
	wait_until('it is killed', sub { !is_running($pid) });
	wait_until('the host knows', sub { (plugin_stats($host, 'envrt.rude')->{pid} // 0) != $pid });
	like(plugin_stats($host, 'envrt.rude')->{lastError}, qr/owes answers that are overdue, and nothing else/,
		'a worker that owes nothing but answers that are overdue is given up');
}

# Its stderr, its log, its wishes.
$host->terminate;
$host = start_host(plugins => [ $journals, $rude ]);
{
	my $client = $host->connect;

	is($client->call('environmentProbe', act('noise'))->{result}, 'done', 'a megabyte on stderr blocks nobody');
	my $error = $client->call('environmentProbe', act('complain'))->{error};
	is($error->{message}, 'it did not work', 'an error in one line');
	is($error->{code}, -32123, '... with its code');
	like($error->{data}{detail}, qr/y{7000}\nlast line$/, '... and the end of stderr');
	like($error->{data}{detail}, qr/^Worker stderr:\n.{7900,8000}$/s, '... not all of it');
	is($client->call('environmentProbe', act('no words'))->{error}{message},
		'Plugin "envrt.rude" failed without a message', 'an error without words');
	is($client->call('environmentProbe', act('log'))->{result}, 'logged', 'log lines');
	my $log = slurp($host->{stderr});
	like($log, qr/^DEBUG: plugin "envrt\.rude": at level debug$/m, '... for debugging');
	like($log, qr/^LOG: plugin "envrt\.rude": at level info$/m, '... for information');
	like($log, qr/^WARNING: plugin "envrt\.rude": at level warn$/m, '... for warning');
	like($log, qr/^WARNING: plugin "envrt\.rude": at level error$/m, '... for errors');
	unlike($log, qr/^WARNING: line/m, '... and none forged');
	my $answers = $client->call('environmentProbe', act('ask'))->{result};
	is_deeply(
		$answers,
		[
			{ jsonrpc => '2.0', id => 1, error => { code => -32601, message => 'Host does not handle method "issues.list"' } },
			{
				jsonrpc => '2.0',
				id => 'text',
				error => {
					code => -32001,
					message => 'Plugin "envrt.rude" is missing required capability "secrets.read-ref" for method "secrets.resolve"'
				}
			}
		],
		'what it may not ask the host is declined');
	for my $act ('no object', 'no id', 'odd id')
	{
		my $answer = $client->call('environmentAcquireLease', act($act));
		is_error($answer, '38000', qr/answered environmentAcquireLease with what is no lease/, "a lease with $act");
		is($answer->{error}{data}{outcome}, 'unknown', '... whose outcome is not known');
	}
	is_deeply(
		$client->call('environmentAcquireLease', act('null id'))->{result},
		{ providerLeaseId => undef, metadata => {}, more => 1, pluginKey => 'envrt.rude', pluginVersion => '0.0.1' },
		'a lease without a name');
	my $child = $client->call('environmentProbe', act('child'))->{result};
	ok(is_running($child), 'a worker with a child');
	$client->call('environmentProbe', act('exit'));
	wait_until('it is gone', sub { !is_running($child) });
	pass('... that dies with it');
}

# Nobody survives the host.
{
	my $worker = $host->call('environmentProbe', act('pid'))->{result};

	ok(is_running($worker), 'a worker runs');
	# It would not notice by itself.
	$host->connect->send_call('environmentProbe', act('deaf'));
	wait_until('it is asked', sub { !-e "/proc/$worker/fd/0" });
	kill 'KILL', $host->{pid};
	waitpid $host->{pid}, 0;
	EnvrtFixture::unregister($host);
	ok(eval { wait_until('it is gone', sub { !is_running($worker) }, 5) }, '... and dies with a host that is killed')
	  or kill 'KILL', $worker;
	$host = start_host(plugins => [$rude]);
	$worker = $host->call('environmentProbe', act('pid'))->{result};
	my $client = $host->connect;
	$client->send_call('environmentProbe', act('never'));
	is($host->terminate, 0, 'a host that ends in order');
	ok(!is_running($worker), '... ends its workers first');
}

#######################################################################
# Manifests
#######################################################################
my $path = temporary_directory();
my %bad = (
	'no JSON' => [ '{', qr/line 1: / ],
	'no object' => [ '[]', qr/no object/ ],
	'the same key twice' => [ '{"id":"a","id":"b"}', qr/duplicate/ ],
	'no id' => [ manifest('x', id => undef), qr/id is missing/ ],
	'an empty id' => [ manifest('x', id => ''), qr/id is missing/ ],
	'no version' => [ manifest('x', version => 1), qr/version is missing/ ],
	'no worker' => [ manifest('x', entrypoints => {}), qr/entrypoints\.worker is missing/ ],
	'a worker elsewhere' => [ manifest('x', entrypoints => { worker => '/bin/true' }), qr/within the folder/ ],
	'a worker above' => [ manifest('x', entrypoints => { worker => 'a/../../worker' }), qr/within the folder/ ],
	'a worker that is not there' => [ manifest('x', entrypoints => { worker => 'none' }), qr/none: No such file/ ],
	'an id with capitals' => [ manifest('X'), qr/Plugin id must start with a lowercase alphanumeric/ ],
	'a worker that can not run' => [ manifest('x', entrypoints => { worker => 'manifest.json' }), qr/not executable/ ],
	'a folder as worker' => [ manifest('x', entrypoints => { worker => '.' }), qr/is no file/ ],
	'no capability' => [ manifest('x', capabilities => []),
		qr/Capability 'environment\.drivers\.register' is required when environmentDrivers are declared/ ],
	'an odd kind' => [ manifest('x', environmentDrivers => [ { driverKey => 'x', kind => 'y' } ]), qr/neither "sandbox_provider"/ ],
	'no driver key' => [ manifest('x', environmentDrivers => [ { kind => 'sandbox_provider' } ]), qr/has no driverKey/ ],
	'a driver twice' => [
		manifest('x', environmentDrivers => [ ({ driverKey => 'x', kind => 'sandbox_provider' }) x 2 ]),
		qr/Duplicate environment driver keys: x/
	],
	'drivers that are no list' => [ manifest('x', environmentDrivers => {}), qr/no list/ ],
	'an odd flag' => [
		manifest('x', environmentDrivers => [ { driverKey => 'x', kind => 'sandbox_provider', acceptsLeaseId => 1 } ]),
		qr/no boolean/
	]);
{
	my $n = 0;
	my %folder;

	for my $name (sort keys %bad)
	{
		$folder{$name} = sprintf '%s/bad-%02d', $path, $n++;
		plugin_folder($folder{$name}, $bad{$name}[0]);
	}
	mkdir "$path/nothing";
	spew("$path/file", 'text');
	plugin_folder("$path/good-1", manifest('twin', version => 'first'));
	plugin_folder("$path/good-2", manifest('twin', version => 'second'));
	plugin_folder("$path/good-3", manifest('shared-1', environmentDrivers => [ { driverKey => 's', kind => 'sandbox_provider' } ]));
	plugin_folder("$path/good-4", manifest('shared-2', environmentDrivers => [ { driverKey => 's', kind => 'sandbox_provider' } ]));
	$host->terminate if $host->{pid};
	$host = start_host(control => { pluginPath => [ $path, "$path/none", 'relative', 7 ] });
	is_error($host->call('environmentProbe', act('echo', driverKey => 'x')), '42704', qr/no matching plugin/,
		'plugins with bad manifests are not there');
	my $log = $host->log_text;
	for my $name (sort keys %bad)
	{
		like($log, qr/^WARNING: the plugin in \Q$folder{$name}\E is left out: .*$bad{$name}[1]/m, "left out: $name");
	}
	like($log, qr{good-2 is left out: .*/good-1 has the same id "twin"}, 'left out: an id that is taken');
	like($log, qr{could not read the plugin directory \Q$path\E/none: No such}, 'a directory that is not there');
	like($log, qr{"relative" is left out: no absolute path}, 'a relative directory');
	unlike($log, qr{nothing|/file}, 'what is no plugin is no trouble');
	is(plugin_stats($host, 'twin')->{version}, 'first', 'the first of two stays');
	like($host->call('environmentAcquireLease', act('null id', driverKey => 's'))->{result}{pluginKey},
		qr/^shared-1$/, 'the first folder that has the driver');
	is(scalar(() = $log =~ /bad-00/g), 1, 'each is said once');
}

# Plugins that come, change and go.
{
	sleep 1.1;
	plugin_folder("$path/late", manifest('late'));
	my $answer = $host->call('environmentProbe', act('pid', driverKey => 'late'));
	ok($answer->{result}, 'a plugin that is installed later is found');
	is_error($host->call('environmentProbe', act('pid', driverKey => 'later')), '42704', qr/./, 'one that is not, not');
	plugin_folder("$path/later", manifest('later'));
	is_error($host->call('environmentProbe', act('pid', driverKey => 'later')), '42704', qr/./,
		'... and it is not looked for more than once a second');
	my $first = $answer->{result};
	$host->configure(pluginPath => [$path]);
	is($host->call('environmentProbe', act('pid', driverKey => 'late'))->{result}, $first,
		'a worker is kept when its plugin is as it was');
	$host->configure(sshIdleTimeoutMs => 1000);
	$host->configure(pluginPath => undef);
	is($host->call('environmentProbe', act('pid', driverKey => 'late'))->{result}, $first,
		'a configuration without a path changes none');
	my $client = $host->connect;
	my $waiting = $client->send_call('environmentProbe', act('order', driverKey => 'late'));
	wait_until('it is sent', sub { plugin_stats($host, 'late')->{activeCalls} == 1 });
	spew("$path/late/manifest.json", $json->encode(manifest('late', version => 'new')));
	$host->configure(pluginPath => [$path]);
	my $second = $host->call('environmentProbe', act('pid', driverKey => 'late'))->{result};
	isnt($second, $first, 'a plugin that has changed gets a new worker');
	ok(is_running($first), '... while the old one has calls');
	is(plugin_stats($host, 'late')->{version}, 'new', '... it is the new one');
	$client->close;
	wait_until('it is gone', sub { !is_running($first) });
	pass('... and ends when it has none');
	$host->configure(pluginPath => []);
	is_deeply($host->stats->{plugins}, [], 'no path, no plugins');
	wait_until('it is gone', sub { !is_running($second) });
	pass('... and no workers');
	is_error($host->call('environmentProbe', act('pid', driverKey => 'late')), '42704', qr/./, '... and no answers');
	is($host->terminate, 0, 'the host ends in order');
}

# Workers that don't start.
{
	my $odd = temporary_directory();
	my %how = (
		die => qr/exited with status 3/,
		refuse => qr/could not be initialized: not today/,
		'no-methods' => qr/did not say which methods it has/,
		'not-ok' => qr/did not say which methods it has/);

	plugin_folder("$odd/$_", manifest($_), $_) for keys %how;
	mkdir "$odd/broken";
	plugin_folder("$odd/broken", manifest('broken', entrypoints => { worker => 'script' }));
	spew("$odd/broken/script", "#!/nonexistent/interpreter\n", 0755);
	$how{broken} = qr/exited with status 127/;
	$host = start_host(plugins => [$odd]);
	my $client = $host->connect;
	my %call = map {
		$_ => $client->send_call('environmentProbe', act('echo', driverKey => $_, limits => { callMs => 4000 }))
	} keys %how;
	for my $name (sort keys %how)
	{
		my $answer = $client->answer($call{$name});

		is_error($answer, '38000', qr/did not answer/, "$name: a worker that does not start");
		like($answer->{error}{data}{detail}, $how{$name}, '... and why');
		like(plugin_stats($host, $name)->{restarts}, qr/^[12]$/, '... is tried again, and not all the time');
		like($answer->{error}{data}{detail}, qr/I do not want to/, '... with its words') if $name eq 'die';
		like($answer->{error}{data}{detail}, qr/could not execute/, '... with ours') if $name eq 'broken';
	}
	is($host->terminate, 0, 'the host ends in order');
}

# A worker for node.
SKIP:
{
	skip 'there is no node', 2 if system('node --version >/dev/null 2>&1') != 0;
	my $nodes = temporary_directory();

	mkdir "$nodes/js";
	spew("$nodes/js/manifest.json", $json->encode(manifest('js', entrypoints => { worker => 'worker.mjs' })));
	spew("$nodes/js/worker.mjs", <<'EOF');
import { createInterface } from 'node:readline';
const answer = (id, result) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, result }) + '\r\n\r\n');
createInterface({ input: process.stdin }).on('line', (line) => {
	const { id, method } = JSON.parse(line);
	if (method === 'initialize') answer(id, { ok: true, supportedMethods: ['environmentProbe'] });
	else answer(id, { ok: true, summary: process.argv[1] });
});
EOF
	$host = start_host(plugins => [$nodes]);
	is($host->call('environmentProbe', act('', driverKey => 'js'))->{result}{summary},
		"$nodes/js/worker.mjs", 'a worker that is run by node');
	is($host->terminate, 0, 'the host ends in order');
}

done_testing();
