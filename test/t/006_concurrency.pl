# Many at once: of 16 releases exactly one gets the lease; 8 ensure one environment; acquire and release
# under load leave nothing behind.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use EnvrtTest;

my $node = new_cluster('many', conf => 'max_connections = 60');
my $company = make_company($node);
my $environment = make_fake_environment($node, $company);

# Runs one statement in n sessions that all wait for one lock, and go when it is released.
sub at_once
{
	my ($n, $sql) = @_;
	my @outputs = ('') x $n;
	my ($in, $out, $err) = ("SELECT pg_advisory_lock(1);\n\\echo locked\n", '', '');
	my $holder = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, '2>', \$err);

	$holder->pump until $out =~ /locked/;
	my @handles = map {
		IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'SELECT FROM pg_advisory_lock_shared(1)', '-c', $sql ],
			'>', \$outputs[$_], '2>&1')
	} 0 .. $n - 1;
	wait_until_sql($node, "SELECT count(*) = $n FROM pg_stat_activity WHERE wait_event = 'advisory'");
	$in .= "SELECT pg_advisory_unlock(1);\n\\q\n";
	$holder->finish;
	IPC::Run::finish($_) for @handles;
	s/^\n+|\n+$//g for @outputs;
	return @outputs;
}

for my $round (1 .. 5)
{
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment, $run);
	my @got = grep { length } at_once(16, "SELECT id FROM envrt_release_leases('$run')");

	is_deeply(\@got, [ $lease->{id} ], "round $round: 16 releases of one run, exactly one gets the row");
	$lease = acquire($node, $company, $environment, $run);
	@got = grep { length } at_once(16, "SELECT id FROM envrt_release_lease('$lease->{id}')");
	is_deeply(\@got, [ $lease->{id} ], "round $round: and of one lease");

	my $fresh = make_company($node);
	my @ids = at_once(8, "SELECT id FROM envrt_ensure_local_environment('$fresh')");
	my %ids = map { $_ => 1 } @ids;
	is(scalar(keys %ids), 1, "round $round: 8 calls of envrt_ensure_local_environment get one row");
	is($node->safe_psql('postgres', "SELECT count(*), min(status) FROM envrt.environments WHERE company_id = '$fresh'"), '1|active', 'which is the only one');
}

# A reusable sandbox: of 8 that want it at once, one gets it
my $reuse = make_fake_environment($node, $company, reuseLease => JSON::PP::true);
my $run = make_run($node, $company);
my @got = at_once(8, "SELECT status FROM envrt_acquire_lease('$company', '$reuse', '$run')");
is(scalar(grep { $_ eq 'active' } @got), 1, 'one of 8 gets a reusable sandbox');
is(scalar(grep { /is held by another active lease/ } @got), 7, 'the others are told so');

# Acquire, release, roll back at random from 8 clients
my $directory = temporary_directory();
my $agent = make_agent($node, $company);
EnvrtFixture::spew("$directory/mix.sql", <<"SQL");
\\set end random(1, 3)
BEGIN;
INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) VALUES ('$company', '$agent', 'running') RETURNING id AS run \\gset
SELECT id AS lease FROM envrt_acquire_lease('$company', '$environment', ':run') \\gset
\\if :end = 1
ROLLBACK;
\\elif :end = 2
COMMIT;
SELECT count(*) FROM envrt_release_leases(':run');
\\else
SELECT count(*) FROM envrt_release_lease(':lease', 'failed');
COMMIT;
\\endif
SQL
$node->safe_psql('postgres', "SELECT * FROM envrt_release_leases('$run')");
$node->command_ok([ 'pgbench', '-n', '-c', 8, '-j', 2, '-t', 150, '-f', "$directory/mix.sql", '-d', 'postgres' ], 'pgbench with 8 clients');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active'"), '0', 'no lease is left active');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases l WHERE heartbeat_run_id IS NULL OR NOT EXISTS (SELECT FROM envrt.heartbeat_runs r WHERE r.id = l.heartbeat_run_id)"), '0', 'none without its run');
is($node->safe_psql('postgres', "SELECT count(*) > 0 FROM envrt.environment_leases WHERE status = 'failed'"), 't', 'all three ends were taken');
done_testing();
