# Triggers, rules and foreign keys of users that refuse what the scheduler does, with an error or without
# one: no such row keeps it busy or stands in others' way; it is put off, counted, shown and logged once.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtProvider;
use PostgreSQL::Test::Utils qw(slurp_file);

my $node = new_cluster('vetoes', conf => EnvrtProvider::conf() . "envrt.execution_retention = '1 s'\n");
my $provider = EnvrtProvider->new;
my $company = make_company($node);
my $journal = $provider->make_environment($node, $company);
my $local = make_environment($node, $company, 'local', {});
my $run = make_run($node, $company);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");
my $scheduler = sql('SELECT pid FROM envrt.stat_schedulers');

# A request that is served shows that the scheduler has done a whole round since.
sub round
{
	my $lease = sql("SELECT envrt_request_lease('$company', '$local', '$run')");

	sql("SELECT FROM envrt_await_lease('$lease', '60 s')");
	return;
}

sub shown
{
	my ($condition, $what) = @_;

	return wait_until_sql($node, "SELECT count(*) > 0 FROM envrt.stat_failures WHERE $condition", $what, 60);
}

sub logged
{
	my ($pattern, $offset) = @_;
	my $log = substr slurp_file($node->logfile), $offset;

	return scalar(() = $log =~ /$pattern/g);
}

sql(<<'SQL');
CREATE SCHEMA vetoes;
CREATE FUNCTION vetoes.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION vetoes.old() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
CREATE FUNCTION vetoes.error() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
CREATE FUNCTION vetoes.hang() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_sleep(3600); RETURN NEW; END';
CREATE FUNCTION vetoes.back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE envrt.environment_leases SET status = 'active' WHERE id = NEW.id;
    RETURN NULL;
END $$;
SQL

#######################################################################
# Leases that have expired
#######################################################################

my $old_lease = 'BEFORE UPDATE ON envrt.environment_leases FOR EACH ROW WHEN (NEW.status = \'expired\') EXECUTE FUNCTION vetoes';
my %expiry = (
	'a trigger returns NULL' => "CREATE TRIGGER veto $old_lease.nothing()",
	'a trigger returns OLD' => "CREATE TRIGGER veto $old_lease.old()",
	'a trigger raises an error' => "CREATE TRIGGER veto $old_lease.error()",
	'a trigger hangs' => "CREATE TRIGGER veto $old_lease.hang()",
	'a later trigger sets it back' =>
	  "CREATE TRIGGER veto AFTER UPDATE ON envrt.environment_leases FOR EACH ROW WHEN (NEW.status = 'expired') EXECUTE FUNCTION vetoes.back()",
	'a rule does nothing instead' =>
	  "CREATE RULE veto AS ON UPDATE TO envrt.environment_leases WHERE NEW.status = 'expired' DO INSTEAD NOTHING");

for my $what (sort keys %expiry)
{
	my $end = -s $node->logfile;

	sql($expiry{$what});
	my $lease = sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run', expires_in => '10 ms')");
	my $failures = $what =~ /hangs/ ? 1 : 2;
	shown("activity = 'ending leases that have expired' AND row_id = '$lease' AND attempts >= $failures AND next_attempt_at > last_attempt_at AND last_error <> '' AND sqlstate <> '00000'",
		"$what: it is tried again");
	round();
	pass("$what: the scheduler goes on with other work");
	is(sql("SELECT status FROM envrt.environment_leases WHERE id = '$lease'"), 'active', "$what: the lease is active");
	is(logged(qr/(?:ERROR|WARNING):  /, $end), 1, "$what: it is logged once");
	is(sql("SELECT failing FROM envrt.stat_schedulers WHERE database = 'postgres'"), '1', "$what: it is counted");
	sql($what =~ /rule/ ? 'DROP RULE veto ON envrt.environment_leases' : 'DROP TRIGGER veto ON envrt.environment_leases');
	# The second and third tries are two and four seconds after the ones before.
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease'", "$what: it ends when nothing is in its way", 60);
	wait_until_sql($node, 'SELECT count(*) = 0 FROM envrt.stat_failures', "$what: it is not shown any more");
}

#######################################################################
# New leases
#######################################################################

for my $what (qw(nothing error))
{
	my $end = -s $node->logfile;

	sql("CREATE TRIGGER veto BEFORE INSERT ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION vetoes.$what()");
	my ($state, $message) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$local', '$run')");
	is($state, $what eq 'error' ? 'P0001' : '09000', "an acquire that a trigger refuses ($what) fails");
	unlike($message, qr/another active lease/, '... and is not said to be held by another');
	my $requested = sql("SELECT envrt_request_lease('$company', '$local', '$run')");
	is((sql_state($node, "SELECT envrt_await_lease('$requested', '60 s')"))[0], $state, '... and so does a requested one');
	is(sql("SELECT state FROM envrt.lease_requests WHERE lease_id = '$requested'"), 'failed', '... which is over');
	sql('DROP TRIGGER veto ON envrt.environment_leases');
}

# What can't even be written down
sql(<<'SQL');
CREATE TRIGGER veto BEFORE INSERT ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION vetoes.error();
CREATE TRIGGER veto BEFORE UPDATE ON envrt.lease_requests FOR EACH ROW EXECUTE FUNCTION vetoes.nothing();
SQL
my $requested = sql("SELECT envrt_request_lease('$company', '$local', '$run')");
shown("activity = 'acquiring a requested lease' AND row_id = '$requested' AND attempts > 1", 'a request that can be neither met nor failed');
sql('DROP TRIGGER veto ON envrt.environment_leases; DROP TRIGGER veto ON envrt.lease_requests');
is((sql_state($node, "SELECT envrt_await_lease('$requested', '60 s')"))[0], '00000', '... is met when nothing is in its way');

#######################################################################
# Executions
#######################################################################

my $lease = sql("SELECT id FROM envrt_acquire_lease('$company', '$journal', '$run')");

sub start
{
	return sql("SELECT envrt_start_execution('$lease', '$_[0]', args => '{$_[1]}')");
}

sub state_is
{
	my ($id, $state, $what) = @_;

	return wait_until_sql($node, "SELECT state = '$state' FROM envrt.executions WHERE id = '$id'", $what, 60);
}

# Retention: a trigger and a foreign key, each for one of them
sql(<<'SQL');
CREATE TABLE vetoes.kept (execution_id uuid REFERENCES envrt.executions);
CREATE FUNCTION vetoes.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN OLD.command = 'keep' THEN NULL ELSE OLD END;
END $$;
CREATE TRIGGER keep BEFORE DELETE ON envrt.executions FOR EACH ROW EXECUTE FUNCTION vetoes.keep();
SQL
my $instance = 'system_identifier, database_id, timeline, instance';
my ($kept, $referenced, $forgotten) = split /\n/, sql(<<"SQL");
INSERT INTO envrt.executions (id, $instance, company_id, environment_id, lease_id, command, args, state, finished_at)
SELECT gen_random_uuid(), $instance, '$company', '$journal', '$lease', command, '{}', 'exited', clock_timestamp() + place * interval '1 ms' - interval '1 h'
FROM unnest('{keep,refer,forget}'::text[]) WITH ORDINALITY c (command, place), envrt.own_instance() RETURNING id;
SQL
sql("INSERT INTO vetoes.kept VALUES ('$referenced')");
is(sql("SELECT envrt_cancel_execution('" . start('true', '') . "')") =~ /[tf]/ ? 1 : 0, 1, 'an execution that ends has the old ones looked at');
wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.executions WHERE id = '$forgotten'", 'one that may be forgotten is, behind others that may not', 60);
shown("activity = 'forgetting old executions' AND row_id = '$kept' AND sqlstate = '09000'", 'one that a trigger keeps');
shown("activity = 'forgetting old executions' AND row_id = '$referenced' AND sqlstate = '23503'", 'one that a foreign key refers to');
sql('DROP TRIGGER keep ON envrt.executions; DELETE FROM vetoes.kept');
wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.executions WHERE id IN ('$kept', '$referenced')", 'both are forgotten when nothing is in their way', 60);

is(sql('SELECT pid FROM envrt.stat_schedulers'), $scheduler, 'the scheduler was the same all the time');

#######################################################################
# What a database sets for its users, and who cancels
#######################################################################

sql(<<'SQL');
CREATE ROLE everybody;
ALTER DATABASE postgres SET role = 'everybody';
ALTER DATABASE postgres SET statement_timeout = '1ms';
ALTER DATABASE postgres SET default_transaction_read_only = on;
ALTER DATABASE postgres SET search_path = nowhere;
ALTER DATABASE postgres SET session_replication_role = replica;
ALTER ROLE postgres SET idle_session_timeout = '100ms';
ALTER ROLE postgres SET exit_on_error = on;
SQL
$node->restart;
$ENV{PGOPTIONS} = '-c role=none -c statement_timeout=0 -c default_transaction_read_only=off -c search_path=public -c session_replication_role=origin -c idle_session_timeout=0 -c exit_on_error=off';
wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");
round();
pass('what ALTER DATABASE and ALTER ROLE set does not change what the scheduler does');
my ($workers) = sql("SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type LIKE 'envrt%'");
is(sql("SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE backend_type LIKE 'envrt%'"), '2', 'the workers are cancelled');
round();
is(sql("SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type LIKE 'envrt%'"), $workers, '... and go on');

stop_all();
done_testing();
