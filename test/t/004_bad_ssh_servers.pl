# Servers that lie, hang, stop and flood: each costs its own call a clear error, and nothing else.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;

my $sshd = EnvrtFixture::Sshd->new->start;
my $silent = EnvrtFixture::Silent->new->start;
my $node = new_cluster('bad', conf => "envrt.ssh_connect_timeout = '1s'\nenvrt.ssh_command_timeout = '1s'\nmax_connections = 120");
my $company = make_company($node);
my $run = make_run($node, $company);
my $good = make_ssh_environment($node, $company, $sshd);
my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');

sub bad_environment
{
	my ($port) = @_;

	return make_ssh_environment($node, $company, $sshd, port => 0 + $port, strictHostKeyChecking => JSON::PP::false);
}

sub still_fine
{
	my ($what) = @_;

	is(acquire($node, $company, $good, $run)->{status}, 'active', "$what: the next acquire elsewhere works");
	return;
}

my %expected = (
	silent => [ '08006', qr/envrt\.ssh_connect_timeout/ ],
	banner => [ '08006', qr/envrt\.ssh_connect_timeout/ ],
	kex => [ '08006', qr/envrt\.ssh_connect_timeout/ ],
	auth => [ '08006', qr/envrt\.ssh_connect_timeout/ ],
	exec => [ '08006', qr/envrt\.ssh_command_timeout/ ],
	flood => [ '38000', qr/\S/ ],
	'drop-exec' => [ '08006', qr/\S/ ],
	junk => [ '08001|08006', qr/\S/ ],
);

for my $mode (sort keys %expected)
{
	my $server = EnvrtFixture::Program->new(build_file('bad_sshd'), $mode)->start;
	my $environment = bad_environment($server->port);
	my ($states, $pattern) = @{ $expected{$mode} };
	my $time = time;
	my ($state, $text) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')");

	like($state, qr/^($states)$/, "$mode: the SQLSTATE") or diag $text;
	like($text, $pattern, "$mode: the message says what to do");
	cmp_ok(time - $time, '<', 6, "$mode: within its limits");
	my $probe = $node->safe_psql('postgres', "SELECT ok, summary FROM envrt_probe('$environment')");
	like($probe, qr/^f\|SSH probe failed for /, "$mode: a probe is a row");
	still_fine($mode);
	$server->stop;
}
is($node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host'), $host, 'the driver host is the same');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE environment_id <> '$good'"), '0', 'no lease came of it');

# Every wait can be cancelled, at once, and the far side is dropped.
$node->append_conf('postgresql.conf', "envrt.ssh_connect_timeout = '60s'");
$node->reload;
wait_until_sql($node, "SELECT setting = '60000' FROM pg_settings WHERE name = 'envrt.ssh_connect_timeout'");
my $hanging = bad_environment($silent->port);
my $hanging_call = "SELECT envrt_acquire_lease('$company', '$hanging', '$run')";
my $measured = $node->safe_psql('postgres', <<"SQL");
CREATE FUNCTION timed_out() RETURNS double precision LANGUAGE plpgsql AS \$\$
DECLARE
    start timestamptz := clock_timestamp();
BEGIN
    PERFORM envrt_acquire_lease('$company', '$hanging', '$run');
    RETURN -1;
EXCEPTION WHEN query_canceled THEN
    RETURN extract(epoch FROM clock_timestamp() - start) * 1000;
END \$\$;
SET statement_timeout = '200ms';
SELECT timed_out();
SQL
cmp_ok($measured, '>=', 190, 'statement_timeout = 200 ms ends the call');
cmp_ok($measured, '<', 300, 'within 300 ms');
wait_until('the driver host to drop the connection', sub { $silent->accepted > 0 && $silent->open_connections == 0 });
pass('and the connection to the silent server is dropped');

sub start_hanging
{
	my ($count) = @_;
	my $accepted = $silent->accepted;
	my @calls;

	for (1 .. $count)
	{
		my $err = '';

		push @calls, { handle => IPC::Run::start([ 'psql', '-X', '-d', $node->connstr('postgres'), '-v', 'VERBOSITY=verbose', '-c', $hanging_call ], '>', \my $out, '2>', \$err), err => \$err };
	}
	return @calls;
}

for my $how ('pg_cancel_backend', 'pg_terminate_backend')
{
	my ($call) = start_hanging(1);

	wait_until_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT envrt_acquire_lease%' AND state = 'active' AND wait_event_type IS NOT NULL");
	wait_until('the connection', sub { $silent->open_connections > 0 });
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.stat_calls WHERE driver = 'ssh' AND method = 'environmentAcquireLease' AND pid IN (SELECT pid FROM pg_stat_activity)"),
		'1', 'stat_calls shows the call and its backend');
	my $time = time;
	$node->safe_psql('postgres', "SELECT $how(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT envrt_acquire_lease%'");
	IPC::Run::finish($call->{handle});
	like(${ $call->{err} }, qr/57014|57P01/, "$how ends the call");
	cmp_ok(time - $time, '<', 1, 'at once');
	wait_until('the driver host to drop the connection', sub { $silent->open_connections == 0 });
	pass('and the connection is dropped');
}

# 50 calls hang; others go on at their usual speed.
acquire($node, $company, $good, $run);
sub median_acquire
{
	return $node->safe_psql('postgres', <<"SQL");
DO \$\$
DECLARE
    start timestamptz;
BEGIN
    CREATE TEMP TABLE times (ms double precision);
    FOR i IN 1 .. 21 LOOP
        start := clock_timestamp();
        PERFORM envrt_acquire_lease('$company', '$good', '$run');
        INSERT INTO times VALUES (extract(epoch FROM clock_timestamp() - start) * 1000);
    END LOOP;
END \$\$;
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM times;
SQL
}
my $alone = median_acquire();
my @calls = start_hanging(50);
wait_until_sql($node, "SELECT count(*) = 50 FROM envrt.stat_calls WHERE driver = 'ssh'");
my $crowded = median_acquire();
note "median warm acquire: $alone ms alone, $crowded ms beside 50 hanging calls";
# A call that waits for one of the hanging ones would take their 60 s.
cmp_ok($crowded, '<', 5 * $alone + 100, 'acquires elsewhere go on beside 50 hanging calls');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.stat_calls WHERE driver = 'ssh'"), '50', 'which still hang');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT envrt_acquire_lease%'");
IPC::Run::finish($_->{handle}) for @calls;
wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_calls');
wait_until('all connections to be dropped', sub { $silent->open_connections == 0 });
pass('all 50 are gone with their backends');

# More calls than a company may have of them: a clear error, and the others go on.
$node->append_conf('postgresql.conf', 'envrt.max_calls = 7');
$node->reload;
wait_until_sql($node, 'SELECT settings_since > pg_conf_load_time() FROM envrt.stat_driver_host');
wait_until_sql($node, "SELECT setting = '7' FROM pg_settings WHERE name = 'envrt.max_calls'");
@calls = start_hanging(5);
wait_until_sql($node, 'SELECT count(*) = 5 FROM envrt.stat_calls');
my ($state, $text) = sql_state($node, $hanging_call);
is($state, '53400', 'one more than its share of envrt.max_calls is refused');
like($text, qr/envrt\.max_calls/, 'naming the setting');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT envrt_acquire_lease%'");
IPC::Run::finish($_->{handle}) for @calls;
wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_calls');

is($node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host'), $host, 'it was one driver host throughout');
done_testing();
