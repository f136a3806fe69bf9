# Memory stays where it was: 100 ssh acquires and releases, 10,000 of a fake sandbox.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;

my $api = EnvrtFixture::Health->new->start;
my $sshd = EnvrtFixture::Sshd->new->start;
my $node = new_cluster('memory', api => $api);
my $company = make_company($node);
my $run = make_run($node, $company);
my $ssh = make_ssh_environment($node, $company, $sshd);
my $fake = make_fake_environment($node, $company);

# Calls that fail once a key has been fetched for them.
my $refused = make_ssh_environment($node, $company, $sshd, knownHosts => undef);

# One backend does it all, statement by statement (a loop in PL/pgSQL grows by itself); it and the
# driver host are measured after the first tenth and at the end.  A leak of 100 bytes a call would
# show: 10,000 calls would leave 1 MB more.
sub measure
{
	my ($environment, $n) = @_;
	my $cycle = $environment eq $refused ? "DO \$\$ BEGIN PERFORM envrt_acquire_lease('$company', '$environment', '$run'); EXCEPTION WHEN SQLSTATE '08004' THEN END \$\$;\n" : "SELECT FROM envrt_acquire_lease('$company', '$environment', '$run');\n"
	  . "SELECT FROM envrt_release_leases('$run');\n";
	my $measure = <<'SQL';
SELECT concat_ws(',',
    (regexp_match(pg_read_file('/proc/' || pg_backend_pid() || '/status'), 'RssAnon:\s+(\d+) kB'))[1]::bigint * 1024,
    (SELECT sum(total_bytes) FROM pg_backend_memory_contexts),
    (SELECT memory FROM envrt.stat_driver_host));
SQL
	my $out = $node->safe_psql('postgres',
		"SET jit = off;\n" . $measure . $cycle x ($n / 10) . $measure . $cycle x ($n - $n / 10) . $measure);
	my (undef, $first, $last) = map { [ split /,/ ] } grep { length } split /\n/, $out;

	return ($first, $last);
}

for ([ 'ssh', $ssh, 100 ], [ 'failing ssh', $refused, 300 ], [ 'fake', $fake, 10_000 ])
{
	my ($name, $environment, $n) = @$_;
	my ($first, $last) = measure($environment, $n);

	note "$name: backend $first->[0] -> $last->[0], its contexts $first->[1] -> $last->[1], driver host $first->[2] -> $last->[2]";
	cmp_ok($last->[0] - $first->[0], '<', 512 * 1024, "$n x $name: the backend's memory stays");
	cmp_ok($last->[1] - $first->[1], '<', 64 * 1024, "$n x $name: its memory contexts stay");
	cmp_ok($last->[2] - $first->[2], '<', 512 * 1024, "$n x $name: the driver host's memory stays");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active'"), '0', 'and every lease was released');
done_testing();
