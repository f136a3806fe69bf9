#!/usr/bin/perl
# Plugins written for the published SDK, with the versions in EnvrtSdk: everything that an environment
# driver does, against the driver host.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use EnvrtSdk;
use JSON::PP ();
use Test::More;

sub is_alive
{
	my ($pid) = @_;
	my $stat = eval { slurp("/proc/$pid/stat") } // return 0;

	return $stat !~ /^\d+ \(.*\) Z/s;
}

my $json = JSON::PP->new->utf8->canonical;
my $reference = 'abcdefab-0123-4567-89ab-0123456789ab';
my ($host, $directory);

sub params
{
	my ($more, %other) = @_;

	return {
		driverKey => 'tempdir', companyId => 'company-1', environmentId => 'environment-1',
		config => { provider => 'tempdir', directory => $directory, %{ $more // {} } }, %other
	};
}

sub call
{
	my ($method, @params) = @_;

	return $host->call("environment$method", params(@params));
}

sub execute
{
	my ($lease, $command, @more) = @_;

	return call('Execute', undef, lease => { %$lease, expiresAt => undef }, command => $command, @more)->{result};
}

sub plugin
{
	my ($key) = @_;

	return (grep { ($_->{key} // '') eq $key } @{ $host->call('envrt/plugins', {})->{result}{plugins} })[0];
}

for my $version (@EnvrtSdk::versions)
{
	note "SDK $version";
	my $data = temporary_directory();
	mkdir "$data/pg_envrt";
	my $path = EnvrtSdk::plugins($version);
	$directory = temporary_directory() . '/sandboxes';
	local $ENV{SECRET_OF_THE_SERVER} = 'x';
	$host = start_host(control => { pluginPath => [$path], dataDirectory => $data });

	my $entry = plugin('envrt.tempdir');
	is($entry->{state}, 'idle', "$version: the plugin is found") or diag explain $entry;
	is($entry->{version}, '1.2.3', '... its version');
	is($entry->{manifest}{environmentDrivers}[0]{configSchema}{properties}{apiKey}{format}, 'secret-ref', '... its manifest');
	ok(plugin('envrt.tempdir-keyed')->{manifest}{environmentDrivers}[0]{acceptsLeaseId}, '... and its other kind');

	is_deeply(call('ValidateConfig', { directory => "$directory/../sandboxes" })->{result},
		{ ok => JSON::PP::true, normalizedConfig => { provider => 'tempdir', directory => $directory } }, 'validate');
	is_deeply(call('ValidateConfig', { directory => 'x' })->{result},
		{ ok => JSON::PP::false, errors => ['directory must be an absolute path'] }, '... what is wrong');
	my $probe = call('Probe')->{result};
	is($probe->{summary}, "Sandboxes are below $directory.", 'probe');
	is_deeply($probe->{metadata}{environment}, [qw(NODE_ENV NODE_PATH PAPERCLIP_PLUGIN_ID PATH TZ)], '... in an environment of five');
	my $pid = $probe->{metadata}{pid};
	is(plugin('envrt.tempdir')->{pid}, $pid, '... of the worker that is listed');
	like(slurp($host->{stderr}), qr/^LOG: plugin "envrt\.tempdir": the plugin is set up$/m, '... whose log is heard');

	# One lease, all its life.
	my $lease = call('AcquireLease', undef, runId => 'run-1', leaseId => 'lease-1', fence => 1)->{result};
	my $home = $lease->{metadata}{remoteCwd};
	ok(-d $home, 'acquire');
	is("$lease->{pluginKey} $lease->{pluginVersion}", 'envrt.tempdir 1.2.3', '... names the plugin');
	my $bare = { providerLeaseId => $lease->{providerLeaseId}, metadata => $lease->{metadata} };
	my $realized = call('RealizeWorkspace', undef, lease => $bare, workspace => { localPath => '/l', mode => 'shared_workspace' })->{result};
	is_deeply($realized, { cwd => "$home/workspace", metadata => { localPath => '/l', mode => 'shared_workspace' } }, 'realize');
	my $all = execute($bare, 'sh', args => [ '-c', 'read -r line; printf "%s|%s|%s|%s" "$line" "$A" "$PWD" "$SECRET_OF_THE_SERVER"; echo e >&2; exit 3' ],
		cwd => 'workspace', env => { A => "\x{fc} b" }, stdin => "a line\nmore");
	is_deeply(
		$all,
		{ exitCode => 3, signal => undef, timedOut => JSON::PP::false, stdout => "a line|\x{fc} b|$home/workspace|", stderr => "e\n" },
		'execute, with stdin, env and cwd');
	my $late;
	my $took = elapsed(sub { $late = execute($bare, 'sh', args => [ '-c', 'echo began; trap "" TERM; sleep 30 & wait' ], timeoutMs => 200) });
	is_deeply([ @$late{qw(exitCode timedOut stdout)} ], [ undef, JSON::PP::true, "began\n" ], 'execute, whose time is over');
	cmp_ok($took, '<', 5, '... in time');
	is(execute($bare, 'sleep', args => [1], timeoutMs => 20000, limits => { callMs => 200 })->{exitCode}, 0,
		'a command may take as long as it was given, whatever a call may');
	my $missing = call('Execute', undef, lease => $bare, command => '/no/such/bin');
	is_error($missing, '38000', qr{^spawn /no/such/bin ENOENT$}, 'execute what is not there');
	is($missing->{error}{code}, -32002, '... has its code');
	my $same = call('ResumeLease', undef, providerLeaseId => $lease->{providerLeaseId}, leaseMetadata => {}, leaseId => 'lease-2')->{result};
	is($same->{providerLeaseId}, $lease->{providerLeaseId}, 'resume');
	ok($same->{metadata}{resumedLease}, '... says so');
	is_error(call('ResumeLease', undef, providerLeaseId => 'journal://none'), '38000', qr{^Lease journal://none not found}, 'resume what is not there');
	is(call('ReleaseLease', { reuseLease => JSON::PP::true }, providerLeaseId => $lease->{providerLeaseId}, leaseId => 'lease-2', keep => JSON::PP::true)
		  ->{result}{outcome}, 'released', 'release, to be kept');
	ok(-d $home, '... it stays');
	is(call('DestroyLease', undef, providerLeaseId => $lease->{providerLeaseId}, leaseId => 'lease-2')->{result}{outcome}, 'destroyed', 'destroy');
	ok(!-d $home, '... it goes');
	$lease = call('AcquireLease', undef, runId => 'run-1')->{result};
	is(call('ReleaseLease', undef, providerLeaseId => $lease->{providerLeaseId})->{result}, undef, 'release');
	ok(!-d $lease->{metadata}{remoteCwd}, '... it goes');

	# As a driver of its own.
	ok($host->call('environmentProbe', params(undef, driverKey => 'tempdir-machine', pluginKey => 'envrt.tempdir'))->{result}{ok}, 'as an environment driver');
	is_error($host->call('environmentProbe', params(undef, driverKey => 'tempdir-machine')), '42704', qr/no matching plugin/, '... which is no sandbox provider');

	# Failures carry what the worker wrote to stderr.
	mkdir "$directory/knobs";
	spew("$directory/knobs/acquire-fail", 1);
	my $failure = call('AcquireLease', undef, leaseId => 'lease-3');
	is_error($failure, '38000', qr/^The knob acquire-fail is set$/, 'an error');
	like($failure->{error}{data}{detail}, qr/failing to acquire, as told$/, '... with the end of stderr');
	is_error(call('Execute', undef, lease => { providerLeaseId => 'journal://none' }, command => 'true'), '38000', qr/no such sandbox/, 'another');

	# A secret that the config refers to.
	$lease = call('AcquireLease', { apiKey => $reference }, secrets => { $reference => 'the-secret-key' })->{result};
	is($lease->{metadata}{secretLength}, 14, 'a secret reaches the plugin');
	my $log = slurp($host->{stderr});
	like($log, qr/the key is \*{14}$/m, '... and its log is masked');
	unlike($log, qr/the-secret-key/, '... everywhere');
	is_error(call('AcquireLease', { apiKey => $reference }), '38000', qr/^Secret not found: $reference$/, '... and not without the reference');
	call('DestroyLease', undef, providerLeaseId => $lease->{providerLeaseId});

	# Fifty at once.
	$lease = call('AcquireLease')->{result};
	my $client = $host->connect;
	$took = elapsed(sub {
		my @ids = map { $client->send_call('environmentExecute', params(undef, lease => $lease, command => 'sh', args => [ '-c', "sleep 2; echo $_" ])) } 1 .. 50;
		is(scalar(grep { $client->answer($ids[ $_ - 1 ])->{result}{stdout} eq "$_\n" } 1 .. 50), 50, 'fifty commands at once');
	});
	cmp_ok($took, '<', 25, '... take no longer than a few');
	is(plugin('envrt.tempdir')->{pid}, $pid, 'the worker has been the same all the time');

	# What a worker has started goes with it, wherever it is.
	for my $who ('worker', 'host')
	{
		my $running = $client->send_call('environmentExecute',
			params(undef, lease => $lease, command => 'sh', args => [ '-c', "echo \$\$ >$directory/pid.new; mv $directory/pid.new $directory/pid; exec sleep 1000" ]));
		wait_until('a command runs', sub { -e "$directory/pid" });
		chomp(my $command = slurp("$directory/pid"));
		unlink "$directory/pid";
		ok(is_alive($command), 'a command in a session of its own');
		if ($who eq 'worker') { kill 'KILL', plugin('envrt.tempdir')->{pid} }
		else
		{
			kill 'KILL', $host->{pid};
			waitpid delete $host->{pid}, 0;
			EnvrtFixture::unregister($host);
		}
		wait_until('it is gone', sub { !is_alive($command) });
		pass("... ends when the $who is killed");
		is_error($client->answer($running), '38000', qr/worker ended during the call/, '... as its call') if $who eq 'worker';
	}

	# In order.
	$host = start_host(plugins => [$path]);
	call('Probe');
	$pid = plugin('envrt.tempdir')->{pid};
	$host->call('envrt/restartPlugin', { key => 'envrt.tempdir' });
	wait_until('it is gone', sub { !is_alive($pid) && plugin('envrt.tempdir')->{state} eq 'idle' });
	like(slurp($host->{stderr}), qr/its worker exited with status 0, after it was told to end/, 'a restart is in order');
	is(slurp("$directory/shutdown"), "$pid\n", '... and the plugin is told');
	ok(call('Probe')->{result}{ok}, '... and another one serves');
	$pid = plugin('envrt.tempdir')->{pid};
	$took = elapsed(sub { is($host->terminate, 0, 'the host ends in order') });
	cmp_ok($took, '<', 5, '... soon');
	is(slurp("$directory/shutdown"), "$pid\n", '... and tells the plugin');
}

done_testing();
