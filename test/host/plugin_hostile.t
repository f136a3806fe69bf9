#!/usr/bin/perl
# Workers that mean harm, for as long as it takes: what they cost are errors, and nothing else.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $json = JSON::PP->new->utf8->canonical;
my $path = temporary_directory();
my $sanitized = ($ENV{ENVRT_DRIVER_HOST} // '') =~ /address/;
my $host;

# A plugin that is the rude one, in a mode.
sub folder
{
	my ($key, $mode) = @_;

	mkdir "$path/$key";
	spew("$path/$key/manifest.json",
		$json->encode({
			id => $key, version => '1', capabilities => ['environment.drivers.register'], entrypoints => { worker => 'worker' },
			environmentDrivers => [ { driverKey => $key, kind => 'sandbox_provider' } ]
		}));
	spew("$path/$key/worker", slurp("$FindBin::RealBin/plugins/rude/worker"), 0755);
	spew("$path/$key/mode", $mode) if defined $mode;
	return;
}

folder('rude');
folder('good');
folder('dead', 'die');
folder('second', 'second');
folder('immortal', 'immortal');

sub act
{
	my ($key, $act, %other) = @_;

	return { driverKey => $key, companyId => 'c', environmentId => 'e', config => { act => $act }, %other };
}

sub probe
{
	my (@act) = @_;

	return $host->call('environmentProbe', act(@act));
}

sub plugin
{
	my ($key) = @_;

	return (grep { $_->{key} eq $key } @{ $host->stats->{plugins} })[0];
}

sub is_running
{
	my ($pid) = @_;
	my $stat = eval { slurp("/proc/$pid/stat") } // return 0;

	return $stat !~ /^\d+ \(.*\) Z/s;
}

sub parent
{
	my ($pid) = @_;

	return (split ' ', slurp("/proc/$pid/stat") =~ s/^.*\) //sr)[1];
}

sub resident { return $host->stats->{host}{rssBytes} / 1048576 }

# Memory after as before, give or take.
sub memory_is_flat
{
	my ($before, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
  SKIP:
	{
		skip 'the sanitizers keep memory', 1 if $sanitized;
		cmp_ok(resident() - $before, '<', 8, "$name: the host's memory is flat (MiB more)");
	}
	return;
}

sub good_is_good
{
	my ($name) = @_;
	my $answer;
	my $took = elapsed(sub { $answer = probe('good', 'pid') });

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($answer->{result} && $took < 5, "$name: another plugin serves as ever");
	return;
}

$host = start_host(plugins => [$path]);
probe($_, 'pid') for qw(rude good);
my $client = $host->connect;

# A thousand failures in a row.
{
	my $failed = 0;

	probe('rude', 'complain') for 1 .. 50;
	my $before = resident();
	for (1 .. 1000)
	{
		my $error = $client->call('environmentProbe', act('rude', 'complain'))->{error};
		$failed++ if $error->{message} eq 'it did not work' && $error->{data}{detail} =~ /^Worker stderr:\n.*y{7000}\nlast line$/s;
	}
	is($failed, 1000, 'a thousand calls in a row fail, each with the end of stderr');
	memory_is_flat($before, 'a thousand failures');
	is(plugin('rude')->{failedCalls}, 1050, '... which are counted');
	is(plugin('rude')->{restarts}, 0, '... and no reason to end the worker');
	good_is_good('a thousand failures');
}

# A thousand calls of a worker that exits at initialize.
{
	my $took = elapsed(sub {
		my $failed = 0;

		for (1 .. 1000)
		{
			my $error = $client->call('environmentAcquireLease', act('dead', 'pid', leaseId => "l$_", limits => { callMs => $_ == 1 ? 2000 : 100 }))->{error};
			$failed++ if $error->{data}{detail} =~ /exited with status 3.*\n\nWorker stderr:\nI do not want to/s && $error->{data}{outcome} eq 'absent';
		}
		is($failed, 1000, 'a thousand calls of a plugin that does not start fail, each with the end of stderr');
	});
	cmp_ok($took, '<', 30, '... soon');
	cmp_ok(plugin('dead')->{restarts}, '<', 8, '... after few starts');
	good_is_good('a worker that exits at initialize');
}

# A worker that exits every second.
{
	my ($answered, $failed, $other) = (0, 0, 0);
	my $end = time + 8;
	my $before = resident();

	while (time < $end)
	{
		my $answer = $client->call('environmentProbe', act('second', 'pid', limits => { callMs => 5000 }));

		if ($answer->{result}) { $answered++ }
		elsif ($answer->{error}{data}{detail} =~ /my second is over/) { $failed++ }
		else { diag $json->encode($answer) if !$other++ }
		select undef, undef, undef, 0.01;
	}
	cmp_ok($answered, '>', 10, 'a worker that exits every second serves meanwhile');
	cmp_ok($failed, '>', 0, '... and then fails');
	is($other, 0, '... with the end of stderr');
	cmp_ok(plugin('second')->{restarts}, '<', 8, '... and is made to wait');
	memory_is_flat($before, 'a worker that exits every second');
	good_is_good('a worker that exits every second');
}

# Lines of a hundred megabytes.
for my $act ('hundred megabytes', 'hundred megabytes in a message')
{
	$host->call('envrt/restartPlugin', { key => 'rude' });
	wait_until('it has ended', sub { plugin('rude')->{state} eq 'idle' });
	my $before = resident();
	my $pid = probe('rude', 'pid')->{result};
	my $answer = probe('rude', $act);
	if ($act =~ /message/) { is_error($answer, '38000', qr/can't be used: the message is longer than 16 MiB/, $act) }
	else { is($answer->{result}, 'after much', $act) }
	is(probe('rude', 'pid')->{result}, $pid, '... and the worker lives on');
	memory_is_flat($before, $act);
	good_is_good($act);
}

# One that is within the limit, but would take a hundred times as much memory.
{
	$host->call('envrt/restartPlugin', { key => 'rude' });
	wait_until('it has ended', sub { plugin('rude')->{state} eq 'idle' });
	is(length probe('rude', 'long value')->{result}[0], 4_000_000, 'a long text');
	is_error(probe('rude', 'many values'), '38000', qr/can't be used: the message has too many values/, 'millions of values in a line cost their call');
	cmp_ok((slurp("/proc/$host->{pid}/status") =~ /^VmHWM:\s+(\d+)/m)[0], '<', 300_000, '... and are not taken into memory') if !$sanitized;
	good_is_good('millions of values');
}

# Standard error without end.
{
	$host->call('envrt/restartPlugin', { key => 'rude' });
	my $before = resident();
	is(probe('rude', 'stderr for ever')->{result}, 'it goes on', 'a worker that fills its stderr');
	for (1 .. 5)
	{
		is(scalar(grep { probe('rude', 'pid')->{result} } 1 .. 20), 20, '... and answers');
		good_is_good('stderr without end');
	}
	memory_is_flat($before, 'stderr without end');
	my $pid = plugin('rude')->{pid};
	$host->call('envrt/restartPlugin', { key => 'rude' });
	wait_until('it is gone', sub { !is_running($pid) });
	cmp_ok(elapsed(sub { probe('rude', 'pid') }), '<', 8, '... until it is restarted');
}

# A worker that hangs while its calls run out of time is ended, one that prints now and then is not.
{
	my $pid = probe('rude', 'pid')->{result};

	is_error(probe('rude', 'never', limits => { callMs => 100 }), '38000', qr/did not answer/, 'a call that is not answered') for 1 .. 8;
	is(probe('rude', 'pid')->{result}, $pid, 'a few such calls in a short time don\'t end the worker');
	kill 'STOP', $pid;
	my $took = elapsed(sub {
		wait_until('a worker that hangs is ended', sub {
				my $answer = probe('rude', 'pid', limits => { callMs => 500 });
				return $answer->{result} && $answer->{result} ne $pid;
			});
	});
	cmp_ok($took, '>=', 9, '... not at once');
	like(slurp($host->{stderr}), qr/plugin "rude": its worker is silent while calls of it run out of time/, '... and it is said why');
	$pid = probe('rude', 'pid')->{result};
	# Nor does it have to have read them.
	$pid = probe('rude', 'pid')->{result};
	kill 'STOP', $pid;
	is_error(probe('rude', 'pid', limits => { callMs => 500 }, padding => 'x' x 1_000_000), '38000', qr/did not answer/, 'a call that is not read');
	wait_until('a worker that does not read is ended', sub {
			my $answer = probe('rude', 'pid', limits => { callMs => 500 });
			return $answer->{result} && $answer->{result} ne $pid;
		});
	# Calls that are not answered in time don't cost the others of a worker that is well.
	$pid = probe('rude', 'pid')->{result};
	my $other = $host->connect;
	my @ordered = $other->send_call('environmentProbe', act('rude', 'order'));
	my $until = time + 14;
	probe('rude', 'never', limits => { callMs => 500 }) while time < $until;
	push @ordered, $other->send_call('environmentProbe', act('rude', 'order', limits => { callMs => 5000 }));
	is_deeply([ map { $other->answer($_)->{result} } @ordered ], [ 'first', 'second' ], 'a worker that has nothing to say to some, but is alive, is not ended');
	is(probe('rude', 'pid')->{result}, $pid, '... and lives on');
	probe('rude', 'lines 30000') for 1 .. 2;
	is(probe('rude', 'pid')->{result}, $pid, 'a worker that prints much now and then lives on');
	good_is_good('a worker that hangs');
}

# One that is stopped, and one whose parent is.
{
	my $pid = plugin('rude')->{pid};
	is_error(probe('rude', 'stop', limits => { callMs => 200 }), '38000', qr/did not answer/, 'a worker that is stopped');
	good_is_good('a worker that is stopped');
	kill 'KILL', $pid;
	wait_until('it is gone', sub { plugin('rude')->{state} eq 'idle' });
	$host->call('envrt/restartPlugin', { key => 'rude' });
	probe('rude', 'pid');
	$pid = plugin('rude')->{pid};
	my $parent = parent($pid);
	isnt($parent, $host->{pid}, 'a worker has a parent of its own');
	is(parent($parent), $host->{pid}, '... whose parent is the host');
	kill 'STOP', $parent;
	is_error(probe('rude', 'much junk'), '38000', qr/ended during the call/, 'a worker whose parent is stopped is killed');
	wait_until('both are gone', sub { !is_running($pid) && !is_running($parent) });
	$host->call('envrt/restartPlugin', { key => 'rude' });
	my $child = probe('rude', 'child')->{result};
	$pid = plugin('rude')->{pid};
	kill 'KILL', parent($pid);
	wait_until('it is gone', sub { !is_running($pid) });
	pass('... and dies with its parent');
	# It is in the worker's session, but nobody is left to know.
	kill 'KILL', $child;
}

# One that refuses to die.
{
	my $pid = probe('immortal', 'pid')->{result};
	my $child = probe('immortal', 'child')->{result};
	my $took = elapsed(sub {
		$host->call('envrt/restartPlugin', { key => 'immortal' });
		my $new = $client->call('environmentProbe', act('immortal', 'pid'))->{result};
		isnt($new, $pid, 'a worker that refuses to die is replaced');
	});
	ok(!is_running($pid), '... after it was killed');
	ok(!is_running($child), '... with its child');
	cmp_ok($took, '>', 10, '... when it had time to end');
	cmp_ok($took, '<', 25, '... and not much more');
	good_is_good('a worker that refuses to die');
	$pid = plugin('immortal')->{pid};
	$took = elapsed(sub { is($host->terminate, 0, 'the host ends in order') });
	cmp_ok($took, '<', 8, '... all the same');
	ok(!is_running($pid), '... and that worker with it');
}

done_testing();
