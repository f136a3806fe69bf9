#!/usr/bin/perl
# Leases of plugins by their keys: nothing that a worker makes is lost, whoever dies or gives up when.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $host;
my $instance;
my $directory;
my $driver = 'journal';
my $last_key = 0;

#######################################################################
# Helpers
#######################################################################

sub fresh_host
{
	$host->terminate if $host;
	$host = start_host(plugins => ["$top/test/plugins"]);
	$instance = $host->call('envrt/hello', {})->{result}{instance};
	fresh_directory();
	return;
}

sub fresh_directory
{
	$directory = temporary_directory();
	mkdir "$directory/$_" for qw(knobs exists);
	return;
}

sub knob
{
	my ($name, $text) = @_;

	return unlink "$directory/knobs/$name" if !defined $text;
	spew("$directory/knobs/$name", $text);
	return;
}

sub new_key
{
	return sprintf 'key-%d-%d', $$, ++$last_key;
}

sub params
{
	my ($key, %other) = @_;
	my $limit = delete $other{limit} // 20000;
	my %config = %{ delete $other{config} // {} };

	return {
		driverKey => $driver,
		companyId => 'company-1',
		environmentId => 'environment-1',
		config => { provider => $driver, directory => $directory, %config },
		defined $key ? (leaseId => $key) : (),
		hostInstance => $instance,
		limits => { callMs => $limit },
		%other
	};
}

sub method
{
	my ($verb) = @_;

	return 'environment' . ucfirst($verb) . 'Lease';
}

sub lease_call
{
	my ($verb, $key, %other) = @_;

	return $host->call(method($verb), params($key, %other), 40);
}

# Sends it over a connection of its own, and returns both.
sub send_lease_call
{
	my ($verb, $key, %other) = @_;
	my $client = $host->connect;

	return ($client, $client->send_call(method($verb), params($key, %other)));
}

sub exists_now
{
	return map { slurp($_) } glob "$directory/exists/*";
}

# The providerLeaseId of what was made for a key
sub id_of
{
	my ($key) = @_;
	my ($file) = grep { slurp($_) eq $key } glob "$directory/exists/*";

	return $file =~ s{.*/}{}r =~ s{__}{//}r;
}

# What the journal says of a key: "create destroy".
sub effects
{
	my ($key) = @_;
	my $text = -e "$directory/journal" ? slurp("$directory/journal") : '';

	return join ' ', map { (split ' ')[2] } grep { (split ' ')[3] eq $key } split /\n/, $text;
}

sub plugin_stats
{
	return (grep { $_->{key} eq "envrt.$driver" } @{ $host->stats->{plugins} })[0];
}

sub kill_worker
{
	my $pid = plugin_stats()->{pid};

	kill 'KILL', $pid;
	wait_until('another worker or none', sub { (plugin_stats()->{pid} // 0) != $pid });
	return;
}

sub outcome_is
{
	my ($answer, $outcome, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply($answer->{result}, { outcome => $outcome }, $name) or diag(JSON::PP->new->canonical->encode($answer));
	return;
}

sub fails_with
{
	my ($answer, $sqlstate, $message, $outcome, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_error($answer, $sqlstate, $message, $name);
	is($answer->{error}{data}{outcome}, $outcome, "... outcome $outcome");
	return;
}

# A create is under way: the worker has it.
sub wait_until_asked
{
	my ($calls) = @_;

	wait_until('the worker is asked', sub { (plugin_stats() // {})->{activeCalls} >= ($calls // 1) });
	# Sent as well, which takes the worker's start; the journal tells when there is an effect.
	wait_until('the worker runs', sub { plugin_stats()->{state} eq 'running' });
	return;
}

#######################################################################
# The plain way
#######################################################################
fresh_host();
{
	my $key = new_key();
	my $lease = lease_call('acquire', $key)->{result};

	is_deeply([exists_now()], [$key], 'an acquire makes a sandbox that knows its lease');
	is_deeply(lease_call('acquire', $key)->{result}, $lease, 'a repeated acquire gets the same');
	is(effects($key), 'create', '... and makes no second one');
	outcome_is(lease_call('destroy', $key, providerLeaseId => $lease->{providerLeaseId}), 'destroyed', 'a destroy');
	is_deeply([exists_now()], [], '... destroys it');
	outcome_is(lease_call('destroy', $key, providerLeaseId => $lease->{providerLeaseId}), 'destroyed', 'another destroy');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... and one without a name');
	is(effects($key), 'create destroy', '... do not reach the worker');
	fails_with(lease_call('acquire', $key), '55000', qr/^the lease was ended meanwhile$/, 'absent', 'an acquire after its end');
	fails_with(lease_call('resume', $key, providerLeaseId => $lease->{providerLeaseId}),
		'55000', qr/^the lease was ended meanwhile$/, 'absent', 'a resume after its end');
	is(effects($key), 'create destroy', '... do not reach the worker either');

	$key = new_key();
	lease_call('acquire', $key);
	outcome_is(lease_call('release', $key), 'released', 'a release finds the name itself');
	is(effects($key), 'create destroy', '... and destroys');
	outcome_is(lease_call('release', $key), 'released', '... once');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... also for a destroy');
	is(effects($key), 'create destroy', '... which the worker does not hear');
}

# Release for reuse.
{
	my $key = new_key();
	my $next = new_key();
	my %reuse = (config => { reuseLease => JSON::PP::true });
	my $lease = lease_call('acquire', $key, %reuse)->{result};

	outcome_is(lease_call('release', $key, %reuse, keep => JSON::PP::true), 'released', 'a release that keeps');
	is_deeply([exists_now()], [$key], '... keeps');
	my $resumed = lease_call('resume', $next, %reuse, providerLeaseId => $lease->{providerLeaseId})->{result};
	is($resumed->{providerLeaseId}, $lease->{providerLeaseId}, 'a resume under another key');
	ok($resumed->{metadata}{resumedLease}, '... is one');
	outcome_is(lease_call('release', $next, %reuse, keep => JSON::PP::true), 'released', '... that is kept too');
	outcome_is(lease_call('destroy', $next), 'destroyed', '... and destroyed in the end, by what is remembered');
	is_deeply([exists_now()], [], '... is gone');
	fails_with(lease_call('resume', new_key(), providerLeaseId => $lease->{providerLeaseId}),
		'38000', qr/not found/, 'unknown', 'what is gone can not be resumed');
	my $fallback = new_key();
	lease_call('resume', $fallback, providerLeaseId => $lease->{providerLeaseId});
	ok(lease_call('acquire', $fallback)->{result}, 'a resume that failed does not stop an acquire');
	outcome_is(lease_call('destroy', $fallback), 'destroyed', '... of the same key');
}

# Without a key, and with bad ones.
{
	my $lease = lease_call('acquire', undef)->{result};

	ok($lease->{providerLeaseId}, 'no key, no bookkeeping');
	is(lease_call('destroy', undef, providerLeaseId => $lease->{providerLeaseId})->{result}, undef, '... and a plain answer');
	fails_with(lease_call('acquire', $_), '22023', qr/^leaseId is no text/, 'absent', 'a bad key')
	  for 7, '', 'x' x 201, "a\0b";
}

# What was never made.
{
	my $key = new_key();

	outcome_is(lease_call('destroy', $key), 'absent', 'a lease that this host never heard of');
	fails_with(lease_call('acquire', $key), '55000', qr/ended meanwhile/, 'absent', '... and that comes late');
	outcome_is(lease_call('destroy', $key), 'absent', '... is still absent');
	is(effects($key), '', '... and unknown to the worker');
	$key = new_key();
	outcome_is(lease_call('destroy', $key, hostInstance => 'f' x 32), 'absent', 'a lease of another host is asked for');
	outcome_is(lease_call('destroy', new_key(), driverKey => 'no-such'), 'absent', 'nothing to end needs no plugin');
	is_error(lease_call('destroy', new_key(), driverKey => 'no-such', hostInstance => 'other'),
		'42704', qr/no matching plugin/, '... but something does');
	fails_with(lease_call('acquire', new_key(), driverKey => 'no-such'), '42704', qr/no matching plugin/, 'absent',
		'a plugin that is not there makes nothing');
}

#######################################################################
# Answers that are errors
#######################################################################
for my $case ([ 'journal', 'unknown' ], [ 'journal-keyed', 'unknown' ], [ 'journal-blind', 'absent' ])
{
	my $key = new_key();
	my $outcome;

	($driver, $outcome) = @$case;
	fresh_directory();
	knob('acquire-fail', 1);
	fails_with(lease_call('acquire', $key), '38000', qr/^The knob acquire-fail is set$/, $outcome, "$driver: an acquire that fails");
	fails_with(lease_call('acquire', $key), '55000', qr/^an earlier request may have made something/, 'unknown',
		'... is not repeated')
	  if $outcome eq 'unknown';
	outcome_is(lease_call('destroy', $key), $driver eq 'journal-keyed' ? 'destroyed' : 'absent', '... and ended');
	is(effects($key), $driver eq 'journal-keyed' ? 'destroy-absent' : '', '... with this effect');
	fails_with(lease_call('acquire', $key), '55000', qr/ended meanwhile/, 'absent', '... for good');

	$key = new_key();
	lease_call('acquire', $key);
	knob('destroy-fail', 1);
	fails_with(lease_call('destroy', $key), '38000', qr/^The knob destroy-fail is set$/, 'unknown', 'a destroy that fails');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is repeated');
	is(effects($key) =~ s/.*create/create/r, 'create destroy', '... with the effect');
}

#######################################################################
# Workers that die
#######################################################################
for my $case ([ 'journal', 'die-before', 'absent', '' ], [ 'journal', 'die-after', 'destroyed', 'create destroy' ],
	[ 'journal-keyed', 'die-before', 'destroyed', 'destroy-absent' ],
	[ 'journal-keyed', 'die-after', 'destroyed', 'create destroy' ],
	[ 'journal-blind', 'die-before', 'unknown', '' ], [ 'journal-blind', 'die-after', 'unknown', 'create' ])
{
	my ($knob, $outcome, $effects);
	my $key = new_key();

	($driver, $knob, $outcome, $effects) = @$case;
	fresh_host();
	knob("acquire-$knob", 1);
	fails_with(lease_call('acquire', $key), '38000', qr/worker ended during the call$/, 'unknown', "$driver: acquire, $knob");
	outcome_is(lease_call('destroy', $key), $outcome, '... the fresh worker is asked');
	is(effects($key), $effects, '... with this effect');
	is(scalar exists_now(), $outcome eq 'unknown' && $effects ? 1 : 0, '... and this is left');

	# The same for a host that knows nothing.
	fresh_host();
	$key = new_key();
	knob("acquire-$knob", 1);
	lease_call('acquire', $key);
	my $kept = $directory;
	kill 'KILL', $host->{pid};
	waitpid delete $host->{pid}, 0;
	EnvrtFixture::unregister($host);
	undef $host;
	fresh_host();
	$directory = $kept;
	outcome_is(lease_call('destroy', $key, hostInstance => 'f' x 32), $outcome, '... also by another host');
	is(effects($key), $effects, '... with the same effect');
}

$driver = 'journal';
for my $knob (qw(die-before die-after))
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', $key);
	knob("destroy-$knob", 1);
	fails_with(lease_call('destroy', $key), '38000', qr/worker ended during the call$/, 'unknown', "destroy, $knob");
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is repeated');
	is(effects($key), $knob eq 'die-before' ? 'create destroy' : 'create destroy destroy-absent', '... with this effect');
	is(scalar exists_now(), 0, '... and nothing left');
	fresh_host();
	$key = new_key();
	knob("acquire-die-after", 1);
	lease_call('acquire', $key);
	knob("list-$knob", 1);
	fails_with(lease_call('destroy', $key), '38000', qr/worker ended during the call$/, 'unknown', "list, $knob");
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is repeated');
	is(scalar exists_now(), 0, '... and nothing left');
	fresh_host();
	my $first = new_key();
	my $lease = lease_call('acquire', $first)->{result};
	$key = new_key();
	knob("resume-$knob", 1);
	fails_with(lease_call('resume', $key, providerLeaseId => $lease->{providerLeaseId}),
		'38000', qr/worker ended during the call$/, 'unknown', "resume, $knob");
	outcome_is(lease_call('destroy', $key), 'destroyed', '... what was to be resumed is remembered');
	is(scalar exists_now(), 0, '... and nothing left');
}

# A worker that is lost before it was asked.
{
	my $key = new_key();

	fresh_host();
	for (1 .. 3)
	{
		lease_call('acquire', new_key());
		kill_worker();
	}
	# Crashes in a row: the next start is made to wait, for three seconds at least.
	my $before = scalar exists_now();
	fails_with(lease_call('acquire', $key, limit => 300), '38000', qr/has no running worker/,
		'absent', 'an acquire that never reached a worker');
	outcome_is(lease_call('destroy', $key, hostInstance => 'other'), 'absent', '... made nothing');
	$key = new_key();
	my ($client) = send_lease_call('acquire', $key);
	wait_until('it waits', sub { (plugin_stats()->{activeCalls} // 0) >= 1 });
	$client->close;
	wait_until('it is withdrawn', sub { plugin_stats()->{activeCalls} == 0 });
	outcome_is(lease_call('destroy', $key, hostInstance => 'other'), 'absent', '... nor one whose client went away');
	$key = new_key();
	($client, my $id) = send_lease_call('acquire', $key);
	wait_until('it waits', sub { (plugin_stats()->{activeCalls} // 0) >= 1 });
	outcome_is(lease_call('destroy', $key, limit => 100), 'absent', '... nor one that is overtaken by its end');
	fails_with($client->answer($id), '55000', qr/ended meanwhile/, 'absent', '... and that is told so');
	wait_until('the worker is back', sub { plugin_stats()->{state} ne 'waiting' });
	ok(lease_call('acquire', new_key())->{result}, 'the worker is back');
	is(scalar exists_now(), $before + 1, '... and has made nothing else');
}

#######################################################################
# Clients that go away, answers that come late
#######################################################################
for my $knob (qw(delay late))
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', new_key());
	knob("acquire-$knob", "0.7 $key");
	my ($client) = send_lease_call('acquire', $key);
	wait_until_asked();
	$client->close;
	wait_until('the call is gone', sub { $host->stats->{host}{activeCalls} == 0 });
	outcome_is(lease_call('destroy', $key), 'destroyed', "a client that goes away during a create ($knob)");
	is(effects($key), 'create destroy', '... does not stop it, and its end waits for it');

	$key = new_key();
	knob("acquire-$knob", "0.7 $key");
	fails_with(lease_call('acquire', $key, limit => 100), '38000', qr/within 100 ms$/, 'unknown', 'an acquire that is late');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is waited for');
	is(effects($key), 'create destroy', '... and destroyed by its name');

	# Nobody waits for the answer; it is remembered.
	$key = new_key();
	knob("acquire-$knob", "0.3 $key");
	lease_call('acquire', $key, limit => 100);
	wait_until('it answers', sub { plugin_stats()->{activeCalls} == 0 });
	my $again = lease_call('acquire', $key);
	ok($again->{result}{providerLeaseId}, 'a late answer is remembered');
	is(effects($key), 'create', '... and given to who asks again');
	knob('list-fail', 'always');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... and its end needs no list');
	is(effects($key), 'create destroy', '... to destroy it');
	knob('list-fail');
}

# A destroy whose client goes away, or whose answer is late.
{
	my $key = new_key();

	lease_call('acquire', $key);
	knob('destroy-delay', "0.5 $key");
	my ($client) = send_lease_call('destroy', $key);
	wait_until_asked();
	$client->close;
	outcome_is(lease_call('destroy', $key), 'destroyed', 'a destroy whose client went away');
	is(effects($key), 'create destroy', '... was not repeated');

	$key = new_key();
	lease_call('acquire', $key);
	knob('destroy-late', "0.5 $key");
	fails_with(lease_call('destroy', $key, limit => 100), '38000', qr/environmentDestroyLease within 100 ms/, 'unknown',
		'a destroy that is late');
	wait_until('it answers', sub { plugin_stats()->{activeCalls} == 0 });
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is remembered');
	is(effects($key), 'create destroy', '... and not repeated');

	$key = new_key();
	lease_call('acquire', $key);
	knob('destroy-stall', "always $key");
	fails_with(lease_call('destroy', $key, limit => 100), '38000', qr/within 100 ms/, 'unknown', 'a destroy that is never answered');
	knob('destroy-stall');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... does not hold up the next one');
	is(scalar(grep { $_ eq $key } exists_now()), 0, '... which has its effect');
}

# One after the other.
{
	my $key = new_key();

	knob('acquire-delay', "0.5 $key");
	my @calls = map { [ send_lease_call($_, $key) ] } qw(acquire destroy destroy acquire);
	my @answers = map { $_->[0]->answer($_->[1]) } @calls;
	ok($answers[0]{result}, 'what comes first is done first');
	outcome_is($answers[1], 'destroyed', '... then its end');
	outcome_is($answers[2], 'destroyed', '... and another');
	fails_with($answers[3], '55000', qr/ended meanwhile/, 'absent', '... and nothing after it');
	is(effects($key), 'create destroy', '... with one effect each');

	my @keys = map { new_key() } 1 .. 20;
	knob('acquire-delay', '0.5');
	my $took = elapsed(
		sub {
			@calls = map { [ send_lease_call('acquire', $_) ] } @keys;
			$_->[0]->answer($_->[1]) for @calls;
		});
	cmp_ok($took, '<', 4, 'other keys do not wait');
	knob('acquire-delay');
	outcome_is(lease_call('destroy', $_), 'destroyed', 'one of them') for $keys[0], $keys[19];
}

#######################################################################
# Creates that are doomed
#######################################################################
for my $knob (qw(delay late))
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', new_key());
	knob("acquire-$knob", "1.2 $key");
	my ($client, $id) = send_lease_call('acquire', $key);
	wait_until_asked();
	my $answer = lease_call('destroy', $key, limit => 300);
	if ($knob eq 'late')
	{
		outcome_is($answer, 'destroyed', 'a create that was made but not answered is found');
	}
	else
	{
		fails_with($answer, '38000', qr/has not answered yet whether it makes the lease/, 'unknown',
			'a create that is not made yet is not found');
	}
	fails_with(lease_call('acquire', $key), '55000', qr/ended meanwhile/, $knob eq 'late' ? 'absent' : 'unknown',
		'... nobody can make it again');
	# What has been found and ended has perhaps given its name to another.
	fails_with($client->answer($id), '55000', qr/ended meanwhile/, $knob eq 'late' ? 'absent' : 'unknown', '... its client is told');
	wait_until('it is destroyed', sub { effects($key) eq 'create destroy' });
	pass('... the host destroys what it made, once');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... and knows');
	like($host->log_text, qr/^LOG: plugin "envrt\.journal": lease \Q$key\E was ended before environmentAcquireLease was answered/m,
		'... and logs') if $knob eq 'delay';
	is(scalar(grep { $_ eq $key } exists_now()), 0, '... and nothing is left');
}
for my $kind (qw(journal-keyed journal-blind))
{
	my $key = new_key();

	$driver = $kind;
	fresh_host();
	lease_call('acquire', new_key());
	knob('acquire-delay', "1.2 $key");
	my ($client) = send_lease_call('acquire', $key);
	wait_until_asked();
	$client->close;
	# Also of one that can't be asked: its maker is alive, and will say.
	fails_with(lease_call('destroy', $key, limit => 300), '38000', qr/has not answered yet/, 'unknown', "$kind: not told yet");
	wait_until('it is destroyed', sub { effects($key) =~ /create destroy$/ });
	pass('... what it makes is destroyed');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... which is known then');
}
$driver = 'journal';

# A client that wants to know the names of what it ends: nothing is ended without one.
for my $knob ('known', 'delay', 'late')
{
	my $key = new_key();
	my %named = (identify => JSON::PP::true, limit => 100);
	my ($client, $id);

	fresh_host();
	lease_call('acquire', new_key());
	knob("acquire-$knob", "0.7 $key") if $knob ne 'known';
	($client, $id) = send_lease_call('acquire', $key);
	wait_until_asked() if $knob ne 'known';
	if ($knob eq 'delay')
	{
		fails_with(lease_call('destroy', $key, %named), '38000', qr/has not answered yet/, 'unknown', 'what is not made yet has no name');
		fails_with($client->answer($id), '55000', qr/ended meanwhile/, 'unknown', '... and is given to nobody');
	}
	$client->answer($id) if $knob eq 'known';
	my $answer = lease_call('destroy', $key, %named)->{result};
	my $made = id_of($key);
	is($answer->{outcome}, 'found', "$knob: it is found");
	is($answer->{providerLeaseId}, $made, '... by its name');
	is(effects($key), 'create', '... and not ended');
	outcome_is(lease_call('destroy', $key, %named, providerLeaseId => $made, limit => 5000), 'destroyed', '... until it is named');
	fails_with($client->answer($id), '55000', qr/ended meanwhile/, 'absent', '... and is given to nobody') if $knob eq 'late';
	is(effects($key), 'create destroy', '... and once');
}

# A resume that is late when its lease is released: what is kept stays, and can be resumed again.
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', $key);
	my %made = (providerLeaseId => id_of($key), config => { reuseLease => JSON::PP::true });
	knob('resume-late', "0.7 $key");
	my ($client, $id) = send_lease_call('resume', $key, %made);
	wait_until('it is resumed', sub { effects($key) eq 'create resume' });
	outcome_is(lease_call('release', $key, %made, keep => JSON::PP::true, limit => 200), 'released', 'a release does not wait for a resume that is late');
	fails_with($client->answer($id), '55000', qr/ended meanwhile/, 'unknown', '... whose answer is for nobody');
	knob('resume-late');
	ok(lease_call('resume', $key, %made)->{result}, '... and can be asked for again');
	is(effects($key), 'create resume release resume', '... and nothing was destroyed');
	lease_call('destroy', $key, %made);
}

# The host's own destroy fails: it tries again.
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', new_key());
	knob('acquire-delay', "0.7 $key");
	my ($client) = send_lease_call('acquire', $key);
	wait_until_asked();
	lease_call('destroy', $key, limit => 100);
	knob('destroy-fail', 2);
	wait_until('it is destroyed', sub { effects($key) eq 'create destroy' });
	pass('a doomed lease is destroyed, at the third time');
	is(scalar(() = $host->log_text =~ /is not destroyed yet/g), 2, '... and two failures are logged');
	$client->close;

	# An end from outside comes first.
	$key = new_key();
	knob('acquire-delay', "0.7 $key");
	($client) = send_lease_call('acquire', $key);
	wait_until_asked();
	lease_call('destroy', $key, limit => 100);
	knob('destroy-fail', 1);
	wait_until('it fails', sub { slurp("$directory/knobs/destroy-fail") =~ /^0/ });
	fails_with(lease_call('acquire', $key), '55000', qr/ended meanwhile/, 'unknown', 'what was made is given to nobody');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... and can be destroyed by who asks');
	sleep 1.2;
	is(effects($key), 'create destroy', '... once');
}

# A doomed create whose worker dies.
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', new_key());
	knob('acquire-hang', "always $key");
	knob('list-fail', 1);
	my ($client) = send_lease_call('acquire', $key);
	wait_until('it is made', sub { effects($key) eq 'create' });
	fails_with(lease_call('destroy', $key, limit => 100), '38000', qr/list-fail/, 'unknown', 'a create that hangs');
	kill_worker();
	fails_with($client->answer(1), '38000', qr/worker ended/, 'unknown', '... until its worker dies');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is found by the next');
	is(scalar(grep { $_ eq $key } exists_now()), 0, '... and nothing is left');

	# Hung before it made anything: the worker's end makes that certain.
	$key = new_key();
	knob('acquire-stall', "always $key");
	($client) = send_lease_call('acquire', $key);
	wait_until_asked();
	fails_with(lease_call('destroy', $key, limit => 100), '38000', qr/has not answered yet/, 'unknown', 'a create that stalls');
	kill_worker();
	outcome_is(lease_call('destroy', $key), 'absent', '... is absent when its worker is gone');
	is(effects($key), '', '... and made nothing');
}

# A create that is late, and a long queue behind it.
{
	my $key = new_key();

	fresh_host();
	lease_call('acquire', new_key());
	knob('acquire-delay', "1 $key");
	my $client = $host->connect;
	my $first = $client->send_call(method('acquire'), params($key));
	my @ids = map { $client->send_call(method('destroy'), params($key)) } 1 .. 300;
	ok($client->answer($first)->{result}, 'a create with three hundred ends behind it');
	is(scalar(grep { ($client->answer($_)->{result} // {})->{outcome} eq 'destroyed' } @ids), 300, '... that all succeed');
	is(effects($key), 'create destroy', '... by one effect');
}

#######################################################################
# Workers that lack a method, and lists that are none
#######################################################################
{
	my $folder = temporary_directory();
	my $plugin = sub {
		my ($name, @methods) = @_;

		mkdir "$folder/$name";
		spew("$folder/$name/worker", slurp("$FindBin::RealBin/plugins/rude/worker"), 0755);
		spew("$folder/$name/mode", join ' ', 'methods', map { "environment$_" } @methods);
		spew(
			"$folder/$name/manifest.json",
			JSON::PP->new->encode({
				id => $name,
				version => '1',
				capabilities => ['environment.drivers.register'],
				entrypoints => { worker => 'worker' },
				environmentDrivers => [ { driverKey => $name, kind => 'sandbox_provider' } ]
			}));
	};
	my $call = sub {
		my ($name, $act, $verb, $key, %other) = @_;

		return lease_call($verb, $key, driverKey => $name, config => { act => $act }, %other);
	};
	my @named = (providerLeaseId => 'p', leaseMetadata => { a => 1 });

	$plugin->('destroyer', 'DestroyLease', 'ProbeX');
	$plugin->('releaser', 'ReleaseLease');
	$plugin->('neither', 'AcquireLease');
	$plugin->('lister', 'ListLeases', 'DestroyLease');
	$host->terminate;
	$host = start_host(plugins => [$folder]);
	$instance = $host->call('envrt/hello', {})->{result}{instance};
	outcome_is($call->('destroyer', 'told', 'release', new_key(), @named), 'released', 'a release by destroy');
	like($host->log_text, qr/environmentDestroyLease p a=1/, '... which is what is called');
	outcome_is($call->('releaser', 'told', 'destroy', new_key(), @named), 'destroyed', 'a destroy by release');
	like($host->log_text, qr/environmentReleaseLease p a=1/, '... which is what is called');
	outcome_is($call->('destroyer', 'exit', 'release', new_key(), @named, keep => JSON::PP::true),
		'released', 'what is to be kept is not destroyed for want of a release');
	fails_with($call->('neither', 'told', 'destroy', new_key(), @named), '38000',
		qr/^environmentDestroyLease is not implemented by this plugin$/, 'unknown', 'neither of them');
	fails_with($call->('destroyer', 'told', 'acquire', my $key = new_key()), '38000',
		qr/^environmentAcquireLease is not implemented/, 'absent', 'no acquire');
	outcome_is($call->('destroyer', 'told', 'destroy', $key, hostInstance => 'x'), 'absent', '... makes nothing');

	for my $act ('no object', 'no id', 'unnamed')
	{
		fails_with($call->('lister', $act, 'destroy', new_key(), hostInstance => 'x'), '38000',
			qr/answered environmentListLeases with no valid list/, 'unknown', "a list that is none: $act");
	}
	my $before = length $host->log_text;
	outcome_is($call->('lister', 'list', 'destroy', $key = new_key(), hostInstance => 'x'), 'destroyed', 'a list of many');
	my @told = substr($host->log_text, $before) =~ /(environment\w+ .*)/g;
	is_deeply(\@told, [ 'environmentDestroyLease mine-1 m=1', 'environmentDestroyLease mine-2' ],
		'... each of the key is destroyed, and no other');
	fails_with($call->('neither', $_, 'acquire', $key = new_key()), '38000', qr/with what is no lease/, 'unknown',
		"no lease: $_")
	  for 'no object', 'no id', 'odd id';
	outcome_is($call->('neither', 'told', 'destroy', $key), 'unknown', '... may be something all the same');
	is($call->('neither', 'null id', 'acquire', $key = new_key())->{result}{providerLeaseId}, undef, 'a lease without a name');
	fails_with($call->('neither', 'told', 'destroy', $key), '38000', qr/not implemented/, 'unknown', '... is held');
}

#######################################################################
# Nothing piles up
#######################################################################
{
	my $cycles = $ENV{ENVRT_LEASE_CYCLES} // 3000;

	fresh_host();
	my $client = $host->connect;
	my $cycle = sub {
		my $key = new_key();
		$client->call(method('acquire'), params($key));
		$client->call(method('destroy'), params($key));
	};
	$cycle->() for 1 .. 500;
	my $before = $host->stats->{host};
	$cycle->() for 1 .. $cycles;
	my $after = $host->stats->{host};
	my $all = $before->{leaseKeys} + $cycles;
	is($after->{leaseKeys}, $all < 100_000 ? $all : 100_000, 'a tombstone for each lease, within limits');
	# The sanitizers keep freed memory for a while.
	cmp_ok($after->{rssBytes} - $before->{rssBytes}, '<', 300 * $after->{leaseKeys} + 2 * 1024 * 1024,
		'... and not much else')
	  if !$ENV{ENVRT_DRIVER_HOST};
	is($host->stats->{host}{activeCalls}, 0, 'no call is left');
	is(plugin_stats()->{activeCalls}, 0, '... and no request');
}

# Of two plugins with one provider, the one that made the lease ends it.
{
	my $path = temporary_directory();
	my $manifest = JSON::PP::decode_json(slurp("$top/test/plugins/journal/manifest.json"));
	my $calls = sub { return { map { $_->{key} => $_->{calls} } @{ $host->stats->{plugins} } } };

	for my $name (qw(a b))
	{
		mkdir "$path/$name";
		$manifest->{id} = "twin-$name";
		spew("$path/$name/manifest.json", JSON::PP::encode_json($manifest));
		spew("$path/$name/worker", slurp("$top/test/plugins/journal/worker"), 0755);
	}
	$host->terminate;
	$host = start_host(plugins => [$path]);
	$instance = $host->call('envrt/hello', {})->{result}{instance};
	fresh_directory();
	my $key = new_key();
	is(lease_call('acquire', $key, pluginsOff => ['twin-a'])->{result}{pluginKey}, 'twin-b', 'the second of two makes a lease');
	outcome_is(lease_call('destroy', $key), 'destroyed', '... which is ended');
	is_deeply($calls->(), { 'twin-a' => 0, 'twin-b' => 2 }, '... by the same plugin');
	# When it is gone, the other one is no substitute.
	$key = new_key();
	lease_call('acquire', $key, pluginsOff => ['twin-a']);
	rename "$path/b", "$path/.b";
	$host->call('envrt/reloadPlugins', {});
	is_error(lease_call('destroy', $key), '42704', qr/twin-b:journal" is not ready/, 'a lease whose plugin is gone');
	rename "$path/.b", "$path/b";
	$host->call('envrt/reloadPlugins', {});
	outcome_is(lease_call('destroy', $key), 'destroyed', '... is ended when it is back');
	is($calls->()->{'twin-a'}, 0, '... by nobody else');
	fresh_host();
}

# The host ends with all kinds of work in it.
{
	my @clients;

	knob('acquire-stall', 'always');
	for (1 .. 5)
	{
		my $key = new_key();
		push @clients, (send_lease_call('acquire', $key))[0], (send_lease_call('destroy', $key, limit => 100))[0];
	}
	wait_until_asked(5);
	sleep 0.3;
	(shift @clients)->close;
	is($host->terminate, 0, 'the host ends in order with work in it');
}

done_testing();
