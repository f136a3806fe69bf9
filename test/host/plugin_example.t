#!/usr/bin/perl
# The example plugin, which has no SDK: what its page promises.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $directory = temporary_directory() . '/sandboxes';
my $host = start_host(plugins => ["$top/examples"]);
my $id = '01234567-89ab-cdef-0123-456789abcdef';

sub params
{
	my (%other) = @_;

	return { driverKey => 'directories', companyId => 'c', environmentId => 'e', config => { directory => $directory }, %other };
}

sub call
{
	my ($method, %params) = @_;

	return $host->call("environment$method", params(%params));
}

sub plugin { return $host->call('envrt/plugins', {})->{result}{plugins} }

sub is_alive
{
	my ($pid) = @_;
	my $stat = eval { slurp("/proc/$pid/stat") } // return 0;

	return $stat !~ /^\d+ \(.*\) Z/s;
}

is_deeply([ map { "$_->{key} $_->{state}" } @{ plugin() } ], ['example.directories idle'], 'the example is a plugin');
is_deeply(call('ValidateConfig', config => { directory => 'x' })->{result},
	{ ok => JSON::PP::false, errors => ['directory must be an absolute path'] }, 'a bad config');
is_deeply(call('ValidateConfig', config => { directory => "$directory//x/.." })->{result},
	{ ok => JSON::PP::true, normalizedConfig => { directory => $directory } }, 'a good one');
is(call('Probe', config => { directory => '/etc/passwd/x' })->{result}{summary}, '/etc/passwd is no directory that can be written.', 'a probe that fails');
is(call('Probe')->{result}{summary}, "Sandboxes are made in $directory.", 'a probe');
ok(!-e $directory, '... which makes nothing');

my $lease = call('AcquireLease', leaseId => $id, runId => 'r')->{result};
is($lease->{providerLeaseId}, "directories://$id", 'acquire');
is($lease->{metadata}{remoteCwd}, "$directory/$id", '... where it is');
ok(-d "$directory/$id", '... and there it is');
like(slurp($host->{stderr}), qr{^LOG: plugin "example\.directories": made \Q$directory/$id\E$}m, '... as the log says');
is(call('ResumeLease', providerLeaseId => $lease->{providerLeaseId})->{result}{metadata}{resumedLease}, JSON::PP::true, 'resume');
is(call('ResumeLease', providerLeaseId => 'directories://none')->{result}{providerLeaseId}, undef, '... what is not there');
is_error(call('ResumeLease', providerLeaseId => 'directories://../x'), '38000', qr/none of our sandboxes/, '... what is elsewhere');
is(call('RealizeWorkspace', lease => $lease, workspace => {})->{result}{cwd}, "$directory/$id", 'realize');

sub execute
{
	my (%params) = @_;

	return call('Execute', lease => $lease, %params);
}

is_deeply(
	execute(command => 'sh', args => [ '-c', 'cat; echo "$A $PWD"; echo e >&2; exit 3' ], stdin => "in\n", env => { A => "\x{fc}" })->{result},
	{ exitCode => 3, signal => undef, timedOut => JSON::PP::false, stdout => "in\n\x{fc} $directory/$id\n", stderr => "e\n" }, 'execute');
is(execute(command => 'sh', args => [ '-c', 'kill -9 $$' ])->{result}{signal}, 'SIGKILL', 'a command that is ended by a signal');
my $late;
cmp_ok(elapsed(sub { $late = execute(command => 'sh', args => [ '-c', 'echo began; exec sleep 30' ], timeoutMs => 200)->{result} }), '<', 5,
	'a command whose time is over');
is_deeply([ @$late{qw(timedOut exitCode stdout)} ], [ JSON::PP::true, undef, "began\n" ], '... and what it wrote');
is_deeply([ @{ execute(command => '/no/such/program')->{result} }{qw(exitCode stderr)} ], [ 127, "No such file or directory: /no/such/program\n" ], 'a command that is none');
is(execute(command => '/etc/passwd')->{result}{exitCode}, 126, '... or no program');
is_error(execute(command => 'true', cwd => 'none'), '38000', qr/No such file/, 'a cwd that is none');
like(execute(command => 'true', cwd => 'none')->{error}{data}{detail}, qr/environmentExecute: FileNotFoundError/, '... with the end of stderr');
my $client = $host->connect;
cmp_ok(
	elapsed(sub {
		my @ids = map { $client->send_call('environmentExecute', params(lease => $lease, command => 'sleep', args => ['1'])) } 1 .. 10;
		is(scalar(grep { $client->answer($_)->{result}{exitCode} eq '0' } @ids), 10, 'ten commands at once');
	}),
	'<', 9, '... take as long as one');
is(call('ReleaseLease', providerLeaseId => $lease->{providerLeaseId}, leaseId => $id)->{result}{outcome}, 'released', 'release');
ok(!-d "$directory/$id", '... and it is gone');

# The answer is lost: the worker is killed after it has made something.  Whoever asks the next one knows.
{
	my $next = '11234567-89ab-cdef-0123-456789abcdef';
	my ($worker) = map { $_->{pid} } @{ plugin() };

	kill 'STOP', $worker;
	my $acquire = $client->send_call('environmentAcquireLease', params(leaseId => $next));
	wait_until('it is sent', sub { plugin()->[0]{activeCalls} == 1 });
	mkdir "$directory/$next";
	kill 'KILL', $worker;
	is($client->answer($acquire)->{error}{data}{outcome}, 'unknown', 'an acquire whose answer is lost');
	is(call('DestroyLease', leaseId => $next, providerLeaseId => undef)->{result}{outcome}, 'destroyed', '... is found by its leaseId');
	ok(!-d "$directory/$next", '... and destroyed');
	($worker) = map { $_->{pid} } @{ plugin() };
	$host->call('envrt/restartPlugin', { key => 'example.directories' });
	wait_until('it is gone', sub { !is_alive($worker) && plugin()->[0]{state} eq 'idle' });
	like(slurp($host->{stderr}), qr/its worker exited with status 0, after it was told to end/, 'it ends in order');
}
is($host->terminate, 0, 'the host ends in order');

done_testing();
