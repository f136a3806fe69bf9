#!/usr/bin/perl
# Leases of a plugin while clients, workers and hosts die at random: whoever asks for the end of each
# lease until it is answered, leaves nothing behind.  ENVRT_CHAOS_SEED repeats a run's dice.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $clients = 6;
my $leases = $ENV{ENVRT_CHAOS_LEASES} // 40;
my $seed = $ENV{ENVRT_CHAOS_SEED} // int(time * 1000) % 1_000_000;
my $directory = temporary_directory();
my $run = temporary_directory();
my %config = (directory => $directory);

mkdir "$directory/$_" for qw(knobs exists);

sub start
{
	return start_host(directory => $run, plugins => ["$top/test/plugins"]);
}

# A connection to whichever host there is, and its name.
sub connection
{
	# Whichever serves the directory.
	my $any = bless { directory => $run }, 'HostTest::Host';

	return wait_until(
		'a host answers',
		sub {
			my $client = eval { $any->connect } or return undef;
			my $hello = eval { $client->call('envrt/hello', {}, 10) } or return undef;
			return [ $client, $hello->{result}{instance} ];
		},
		60);
}

sub params
{
	my ($key, $instance, $limit) = @_;

	return {
		driverKey => 'journal',
		companyId => 'company-1',
		environmentId => 'environment-1',
		config => \%config,
		leaseId => $key,
		hostInstance => $instance,
		limits => { callMs => $limit }
	};
}

# Asks for a lease and goes away, sooner or later; returns the host that was asked.
sub make
{
	my ($key) = @_;
	my ($client, $instance) = @{ connection() };
	my $dice = rand;

	eval {
		my $id = $client->send_call('environmentAcquireLease', params($key, $instance, 20 + int rand 1000));
		sleep rand 0.05 if $dice < 0.3;
		$client->answer($id, 10) if $dice >= 0.3;
	};
	$client->close;
	return $instance;
}

# Asks for its end until somebody says that it has come; false when nobody does.
sub end
{
	my ($key, $instance) = @_;
	my $deadline = time + 60;

	while (time < $deadline)
	{
		my ($client) = @{ connection() };
		my $answer = eval {
			my $id = $client->send_call('environmentDestroyLease', params($key, $instance, 20 + int rand 300));
			die "gone\n" if rand() < 0.1;
			$client->answer($id, 10);
		};
		my $outcome = $answer && $answer->{result} && $answer->{result}{outcome};

		$client->close;
		return 1 if $outcome && $outcome =~ /^(?:destroyed|absent)$/;
		sleep 0.05;
	}
	return 0;
}

my $host = start();
my %knob = (
	'acquire-late' => 0.02,
	'acquire-delay' => 0.2,
	'destroy-late' => 0.02,
	'acquire-fail' => 3,
	'destroy-fail' => 3,
	'list-fail' => 2,
	'list-delay' => 0.05);
my @pids = map {
	my $number = $_;
	EnvrtFixture::spawn(
		sub {
			local $SIG{PIPE} = 'IGNORE';
			srand $seed + $number;
			for my $n (1 .. $leases)
			{
				my $key = "key-$number-$n";
				end($key, make($key)) or die "no end of $key\n";
			}
		})
} 1 .. $clients;

srand $seed;
note("seed $seed");
my %left = map { $_ => 1 } @pids;
my $round = 0;
my $failed = 0;
my $kills = 0;
my $deadline = time + 120;
while (%left && time < $deadline)
{
	for my $pid (keys %left)
	{
		next if !waitpid $pid, POSIX::WNOHANG();
		$failed++ if $?;
		delete $left{$pid};
	}
	sleep 0.05;
	$round++;
	my $name = (sort keys %knob)[ int rand keys %knob ];
	if (rand() < 0.5) { spew("$directory/knobs/$name", $knob{$name}) }
	else { unlink "$directory/knobs/$name" }
	# Not too often: crashes in a row are made to wait.
	if ($round % 10 == 3 && $kills < 6)
	{
		$kills++;
		if ($kills % 3 == 0)
		{
			kill 'KILL', $host->{pid};
			waitpid delete $host->{pid}, 0;
			EnvrtFixture::unregister($host);
			$host = start();
		}
		else
		{
			my ($plugin) = grep { $_->{key} eq 'envrt.journal' } @{ $host->stats->{plugins} };
			kill 'KILL', $plugin->{pid} if $plugin && $plugin->{pid};
		}
	}
}
is(scalar keys %left, 0, 'every client came to its end');
is($failed, 0, '... and every lease');
kill 'KILL', $_ for keys %left;
cmp_ok($kills, '>=', 3, 'workers and hosts were killed');

# What a doomed create makes is destroyed by the host, a moment later.
wait_until('nothing is left', sub { !glob "$directory/exists/*" }, 15) if glob "$directory/exists/*";
is(scalar(() = glob "$directory/exists/*"), 0, 'no sandbox is left');
my %made;
for my $line (split /\n/, slurp("$directory/journal"))
{
	my (undef, undef, $what, $key) = split ' ', $line;

	$made{$key}++ if $what eq 'create';
}
cmp_ok(scalar keys %made, '>', $clients * $leases / 4, '... of many');
is(scalar(grep { $_ > 1 } values %made), 0, 'none was made twice');
wait_until('no request is left', sub { !grep { $_->{activeCalls} } @{ $host->stats->{plugins} } });
is($host->stats->{host}{activeCalls}, 0, 'no call is left');
is($host->terminate, 0, 'the host ends in order');

done_testing();
