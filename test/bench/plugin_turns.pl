#!/usr/bin/perl
# Calls of a plugin through the driver host, next to the same lines to a worker of the same plugin without
# anything between, and to one with a process between that only copies bytes (plugin_copier.c): what that
# costs is the least that any host can cost.  Contenders take turns, so that what else the machine does meets both; the clients do
# the same, and as little as possible: they write a line and read one.
#
#   plugin_turns.pl TURNS CALLS      prints a row of milliseconds for each kind of call, and ratios to the bare worker
#
# A ratio is the median of the ratios of neighbouring turns.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib", "$FindBin::RealBin/../host";
use HostTest;
use EnvrtSdk;
use IPC::Open2;
use JSON::PP ();
use POSIX ();

my ($turns, $calls) = @ARGV;
my $json = JSON::PP->new->utf8->canonical;
my $plugins = EnvrtSdk::plugins($EnvrtSdk::versions[0]);
my $directory = temporary_directory() . '/sandboxes';
my $host = start_host(plugins => [$plugins]);

# A side: how lines get there and back.
my @contenders = qw(bare copied host);
my %side = map { ($_ => {}) } @contenders;

# With the environment and the folder that it has at the host's.
my $worker = "$plugins/tempdir/dist/worker.js";
{
	local %ENV = (PATH => $ENV{PATH}, NODE_PATH => '', PAPERCLIP_PLUGIN_ID => 'envrt.tempdir', NODE_ENV => 'production', TZ => 'UTC');
	my $socket = temporary_directory() . '/copier';
	open my $saved, '>&', \*STDERR;
	open STDERR, '>', '/dev/null';
	my $pid = open2(my $out, my $in, 'node', $worker);
	@{ $side{bare} }{qw(out in)} = ($out, $in);
	EnvrtFixture::register(bless { pid => $pid }, 'Bare');
	$pid = EnvrtFixture::spawn(sub { exec "$FindBin::RealBin/../../build/plugin_copier", $socket, 'node', $worker });
	open STDERR, '>&', $saved;
	EnvrtFixture::register(bless { pid => $pid }, 'Bare');
	wait_until('the copier listens', sub { $side{copied}{in} = $side{copied}{out} = IO::Socket::UNIX->new(Peer => $socket) });
}
my $socket = IO::Socket::UNIX->new(Peer => "$host->{directory}/envrt_host.sock");
@{ $side{host} }{qw(out in)} = ($socket, $socket);

sub Bare::stop { kill 'KILL', $_[0]{pid}; waitpid $_[0]{pid}, 0; return }

# As many lines as there are.
sub exchange
{
	my ($side, $lines) = @_;
	my $left = $lines =~ tr/\n//;
	my $all = '';

	syswrite $side->{in}, $lines or die "can't write: $!";
	while ($left > 0)
	{
		sysread $side->{out}, my $buffer, 65536 or die 'no answer';
		$left -= $buffer =~ tr/\n//;
		$all .= $buffer;
	}
	return $all;
}

my $id = 0;

sub call_line
{
	my ($method, $params) = @_;

	return $json->encode({ jsonrpc => '2.0', id => ++$id, method => $method, params => $params }) . "\n";
}

sub ask
{
	my ($side, $method, $params) = @_;
	my @lines;

	push @lines, split /\n/, exchange($side, call_line($method, $params));
	# What the worker logs comes before.
	while ($lines[-1] !~ /"id"/)
	{
		sysread $side->{out}, my $more, 65536 or die 'no answer';
		push @lines, split /\n/, $more;
	}
	my $answer = $json->decode($lines[-1]);
	die $json->encode($answer->{error}) if $answer->{error};
	return $answer->{result};
}

my %base = (driverKey => 'tempdir', companyId => 'c', environmentId => 'e', config => { provider => 'tempdir', directory => $directory });

ask($side{$_}, 'initialize', {
		manifest => { id => 'envrt.tempdir' }, config => {}, instanceInfo => { instanceId => 'bench', hostVersion => '0' }, apiVersion => 1,
		databaseNamespace => undef
	}) for qw(bare copied);
for my $side (values %side)
{
	ask($side, 'environmentProbe', {%base}) for 1 .. 200;
	$side->{lease} = ask($side, 'environmentAcquireLease', { %base, runId => 'r' });
}

# What is measured: the lines of one round, for a side.
my @kinds = (
	[ 'probe (no work)', sub { call_line('environmentProbe', {%base}) } ],
	[
		'acquire + release',
		sub { call_line('environmentAcquireLease', { %base, runId => 'r' }) },
		sub { call_line('environmentReleaseLease', { %base, providerLeaseId => $_[1] }) }
	],
	[ 'execute of true', sub { call_line('environmentExecute', { %base, lease => $_[0]{lease}, command => 'true' }) } ],
	[
		'execute of true, 8 at once',
		sub {
			my ($side) = @_;
			return join '', map { call_line('environmentExecute', { %base, lease => $side->{lease}, command => 'true' }) } 1 .. 8;
		}
	]);

# A round's time, in milliseconds; what is only ours to do is not counted.
sub round
{
	my ($side, @steps) = @_;
	my $spent = 0;
	my $id_of_lease;

	for my $step (@steps)
	{
		my $line = $step->($side, $id_of_lease);
		my $start = time;
		my $answer = exchange($side, $line);

		$spent += time - $start;
		die $answer if $answer =~ /"error"/;
		($id_of_lease) = $answer =~ /"providerLeaseId": ?"([^"]+)"/ or $id_of_lease = undef;
	}
	return 1000 * $spent;
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ @sorted / 2 ];
}

for my $kind (@kinds)
{
	my ($name, @steps) = @$kind;
	my (%ratios, %medians);

	for my $turn (1 .. $turns)
	{
		my %turn;

		for my $who ($turn % 2 ? @contenders : reverse @contenders)
		{
			$turn{$who} = median(map { round($side{$who}, @steps) } 1 .. $calls);
			push @{ $medians{$who} }, $turn{$who};
		}
		push @{ $ratios{$_} }, $turn{$_} / $turn{bare} for qw(host copied);
	}
	printf "%-31s %8.3f %8.3f %8.3f %6.2f %6.2f\n", $name, (map { median(@{ $medians{$_} }) } qw(host copied bare)), map { median(@{ $ratios{$_} }) } qw(host copied);
}
$host->terminate;
