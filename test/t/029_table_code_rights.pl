# Whatever a table can evaluate runs with no more than the rights of the table's owner, and what is of somebody without
# these rights is refused: each kind of code, on each table that envrt writes or reads, in backends (a superuser calls, or
# somebody who is nobody) and in the scheduler, the only other process with a database.  Partition keys are no kind of
# their own: each of these tables has a primary key, with which PostgreSQL allows no expression there.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use PostgreSQL::Test::Utils qw(slurp_file);

# %b: the kind of process that says something.
my $node = new_cluster('rights', extension => 0, conf => "log_line_prefix = '%m [%p] %b: '\nlog_statement = none\n");

sub sql
{
	my ($sql, $user) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => $user ? [ '-U', $user ] : []);
}

sub log_end
{
	return -s $node->logfile;
}

sub log_from
{
	my ($offset) = @_;

	return substr slurp_file($node->logfile), $offset;
}

#######################################################################
# CREATE EXTENSION among a stranger's objects, each named as something in the script and of types that fit better
#######################################################################
sql(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE stranger LOGIN;
CREATE ROLE tenant LOGIN;
CREATE DATABASE theirs OWNER stranger;
SQL
{
	my $script = slurp_file("$FindBin::RealBin/../../sql/envrt.sql");
	my %functions = map { $_ => 1 } $script =~ /\b(?:pg_catalog|envrt|\@extschema\@)\.(\w+)\(/g;
	my %operators = map { $_ => 1 } $script =~ /OPERATOR\(pg_catalog\.([^)]+)\)/g;
	my $steal = "LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN EXECUTE 'ALTER ROLE stranger SUPERUSER'; RETURN NULL; END \$\$;\n";
	my $plant = '';

	for my $name (sort keys %functions)
	{
		$plant .= "CREATE FUNCTION public.$name($_) RETURNS text $steal" for 'VARIADIC text[]', 'varchar';
		# Where the extension has no such function itself.
		$plant .= "CREATE FUNCTION public.$name(text) RETURNS text $steal" if $script !~ /CREATE FUNCTION \@extschema\@\.\Q$name\E\(\w+ text\)/;
	}
	for my $type (qw(text jsonb varchar))
	{
		$plant .= "CREATE FUNCTION public.took($type, $type) RETURNS boolean $steal";
		$plant .= "CREATE OPERATOR public.$_ (LEFTARG = $type, RIGHTARG = $type, FUNCTION = public.took);\n" for sort keys %operators;
	}
	$node->safe_psql('theirs', $plant, extra_params => [ '-U', 'stranger' ]);
	$node->safe_psql('theirs', 'CREATE EXTENSION envrt');
	is(sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'stranger'"), 'f', 'CREATE EXTENSION runs nothing of the database\'s owner');
	# What is in a catalog now would run later.
	is($node->safe_psql('theirs', <<'SQL'), '', 'and uses nothing of his');
SELECT pg_describe_object(d.classid, d.objid, 0) || ' uses ' || pg_describe_object(d.refclassid, d.refobjid, 0)
FROM pg_depend d
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
WHERE 'stranger'::regrole IN (p.proowner, o.oprowner)
  AND NOT EXISTS (SELECT FROM pg_operator WHERE d.classid = 'pg_operator'::regclass AND oid = d.objid AND oprowner = 'stranger'::regrole)
SQL
}

#######################################################################
# The kinds of code
#######################################################################
sql('CREATE EXTENSION envrt');
my @tables = qw(companies agents heartbeat_runs environments environment_leases company_secrets company_secret_versions plugins activity_log execution_workspaces);
my $company = make_company($node);
my $local = make_environment($node, $company, 'local', {});
my $run = make_run($node, $company);
my $workspace = sql("INSERT INTO envrt.execution_workspaces (company_id, project_id, mode, strategy_type, name) VALUES ('$company', gen_random_uuid(), 'shared', 'x', 'x') RETURNING id");
my $secret = sql("SELECT envrt_create_secret('$company', 'given', 'value')");

sql(join ';', map { "ALTER TABLE envrt.$_ OWNER TO app" } @tables);
sql('GRANT CREATE ON SCHEMA envrt TO app; GRANT SELECT ON ALL TABLES IN SCHEMA envrt TO tenant; GRANT USAGE ON SCHEMA envrt TO app, stranger, tenant; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO app, tenant');
sql("GRANT TRIGGER, REFERENCES ON envrt.$_ TO stranger") for @tables;
# Runs elsewhere, whose trigger ends leases in whoever's statement.
sql("CREATE TABLE public.jobs (id uuid PRIMARY KEY, status text); INSERT INTO public.jobs VALUES ('$run', 'running'); GRANT SELECT, UPDATE ON public.jobs TO tenant; SELECT envrt_attach_runs('public.jobs')");

# app's code and stranger's.  It says as whom it runs, when it has tried to be somebody else.
for my $role (qw(app stranger))
{
	my $s = $role eq 'app' ? 'own' : 'strange';

	sql("CREATE SCHEMA $s AUTHORIZATION $role");
	sql(<<"SQL", $role);
GRANT USAGE ON SCHEMA $s TO PUBLIC;
CREATE FUNCTION $s.say(name text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS \$\$
BEGIN
    BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'SET ROLE postgres'; EXCEPTION WHEN OTHERS THEN NULL; END;
    RAISE LOG 'code % runs as %', name, current_user;
    RETURN name;
END \$\$;
CREATE FUNCTION $s.yes(name text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN PERFORM $s.say(name); RETURN true; END \$\$;
CREATE FUNCTION $s.by_trigger() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM $s.say(TG_ARGV[0]); RETURN NEW; END \$\$;
SQL
}

# Each: SQL that puts a piece of code that calls itself %i, of schema %s, on table %t; %a: as its author, %p: as who puts it there.
my @kinds = (
	[ 'trigger function', 'CREATE TRIGGER %n BEFORE INSERT OR UPDATE ON envrt.%t FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i)' ],
	[ 'statement trigger', 'CREATE TRIGGER %n AFTER INSERT OR UPDATE ON envrt.%t FOR EACH STATEMENT EXECUTE FUNCTION %s.by_trigger(%i)' ],
	[ 'WHEN clause', 'CREATE TRIGGER %n BEFORE UPDATE ON envrt.%t FOR EACH ROW WHEN (%s.yes(%i)) EXECUTE FUNCTION suppress_redundant_updates_trigger()' ],
	[ 'deferred trigger', 'CREATE CONSTRAINT TRIGGER %n AFTER INSERT OR UPDATE ON envrt.%t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i)' ],
	[ 'rule', 'CREATE RULE %n AS ON UPDATE TO envrt.%t DO ALSO SELECT %s.say(%i)' ],
	[ 'policy', 'CREATE POLICY %n ON envrt.%t USING (%s.yes(%i)); ALTER TABLE envrt.%t ENABLE ROW LEVEL SECURITY' ],
	[ 'CHECK', 'ALTER TABLE envrt.%t ADD CONSTRAINT %n CHECK (%s.yes(%i))' ],
	[ 'default', 'ALTER TABLE envrt.%t ADD COLUMN %n text DEFAULT %s.say(%i)' ],
	[ 'generated column', 'ALTER TABLE envrt.%t ADD COLUMN %n text GENERATED ALWAYS AS (%s.say(%i)) STORED' ],
	[ 'index expression', 'CREATE INDEX %n ON envrt.%t ((%s.say(%i)))' ],
	[ 'index predicate', 'CREATE INDEX %n ON envrt.%t (id) WHERE %s.yes(%i)' ],
	[ 'statistics', 'CREATE STATISTICS envrt.%n ON (%s.say(id::text)) FROM envrt.%t' ],
	[ 'domain', '%a; CREATE DOMAIN %s.%n AS text CHECK (%s.yes(%i)); %p; ALTER TABLE envrt.%t ADD COLUMN %n %s.%n DEFAULT %i' ],
	[ 'operator', '%a; CREATE FUNCTION %s.%n(integer, integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN %s.yes(%i); END $$; CREATE OPERATOR %s.%o (LEFTARG = integer, RIGHTARG = integer, FUNCTION = %s.%n); %p; ALTER TABLE envrt.%t ADD CONSTRAINT %n CHECK (1 OPERATOR(%s.%o) 1)' ],
	[ 'cast', q{%a; CREATE TYPE %s.%n AS ENUM ('x'); CREATE FUNCTION %s.%n_of(%s.%n) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN %s.say(%i); END $$; CREATE CAST (%s.%n AS text) WITH FUNCTION %s.%n_of(%s.%n) AS IMPLICIT; %p; ALTER TABLE envrt.%t ADD COLUMN %n %s.%n DEFAULT 'x', ADD CONSTRAINT %n CHECK (%n::text <> '')} ],
	[ 'type of a column', q{%a; CREATE TYPE %s.%n AS (a integer); %p; ALTER TABLE envrt.%t ADD COLUMN %n %s.%n} ],
	[ 'deferred foreign key', '%a; CREATE TABLE %s.%n (id integer PRIMARY KEY CHECK (%s.yes(%i))); INSERT INTO %s.%n VALUES (1); %p; ALTER TABLE envrt.%t ADD COLUMN %n integer DEFAULT 1 REFERENCES %s.%n DEFERRABLE INITIALLY DEFERRED' ],
	[ 'following foreign key', 'CREATE TABLE %s.%n (id uuid REFERENCES envrt.%t ON UPDATE CASCADE); CREATE TRIGGER %n AFTER INSERT OR UPDATE ON %s.%n FOR EACH STATEMENT EXECUTE FUNCTION %s.by_trigger(%i)' ],
	[ 'cascade', 'CREATE TABLE %s.%n (id uuid REFERENCES envrt.%t ON DELETE CASCADE); CREATE TRIGGER %n AFTER DELETE ON %s.%n FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i); %p; INSERT INTO %s.%n SELECT id FROM envrt.%t' ],
	[ 'cascade that sets null', 'CREATE TABLE %s.%n (id uuid REFERENCES envrt.%t ON DELETE SET NULL); CREATE TRIGGER %n AFTER UPDATE ON %s.%n FOR EACH STATEMENT EXECUTE FUNCTION %s.by_trigger(%i); %p; INSERT INTO %s.%n SELECT id FROM envrt.%t' ],
	# Behind a table of somebody who is trusted
	[ 'cascade of a cascade', 'CREATE TABLE own.%n_first (id uuid UNIQUE REFERENCES envrt.%t ON DELETE CASCADE); GRANT REFERENCES ON own.%n_first TO PUBLIC; %a; CREATE TABLE %s.%n (id uuid REFERENCES own.%n_first (id) ON DELETE SET DEFAULT); CREATE TRIGGER %n AFTER UPDATE ON %s.%n FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i); %p; INSERT INTO own.%n_first SELECT id FROM envrt.%t; INSERT INTO %s.%n SELECT id FROM envrt.%t' ],
	[ 'cascade of a changed id', 'CREATE TABLE own.%n_first (id uuid UNIQUE REFERENCES envrt.%t ON DELETE SET NULL); GRANT REFERENCES ON own.%n_first TO PUBLIC; %a; CREATE TABLE %s.%n (id uuid REFERENCES own.%n_first (id) ON UPDATE CASCADE); CREATE TRIGGER %n AFTER UPDATE ON %s.%n FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i); %p; INSERT INTO own.%n_first SELECT id FROM envrt.%t; INSERT INTO %s.%n SELECT id FROM envrt.%t' ],
	[ 'child table', 'CREATE TABLE %s.%n () INHERITS (envrt.%t); CREATE TRIGGER %n BEFORE UPDATE ON %s.%n FOR EACH ROW EXECUTE FUNCTION %s.by_trigger(%i); ALTER TABLE %s.%n OWNER TO %r' ],
);
# PostgreSQL refuses our INSERT ... ON CONFLICT by itself on a table with a rule.
my %on_conflict = map { $_ => 1 } qw(environments company_secrets plugins);
# What a stranger puts on somebody else's table runs with the stranger's rights there: harmless.
my %harmless = map { $_ => 1 } ('deferred foreign key', 'following foreign key');
# These can run where envrt deletes rows; elsewhere they are harmless as well.
my %deleted = map { $_ => 1 } qw(company_secrets company_secret_versions);
$harmless{$_} = 1 for grep { /^cascade/ } map { $_->[0] } @kinds;

sub put
{
	my ($kind, $table, $schema) = @_;
	my $name = lc("$kind $table") =~ tr/a-z/_/csr;
	my $operator = '<' . join '', map { (qw(< > @ ~))[ ord($_) % 4 ] } split //, substr $name, 0, 40;
	my %value = (n => $name, t => $table, s => $schema, i => "'$name'", o => "$operator@", r => $schema eq 'own' ? 'app' : 'stranger');

	$value{a} = "SET ROLE $value{r}";
	$value{p} = 'SET ROLE ' . ($schema eq 'own' ? 'app' : 'postgres');
	my ($statement) = map { $_->[1] } grep { $_->[0] eq $kind } @kinds;
	$statement =~ s/%(\w)/$value{$1}/g;
	return ($name, $statement);
}

# As one who would do anything: what comes of each of these calls.
sub calls
{
	my ($lease, $doomed) = @_;

	return (
		"SELECT envrt_ensure_local_environment('$company')",
		"SELECT envrt_create_environment('$company', 'made', 'ssh', '{\"host\": \"h\", \"username\": \"u\", \"remoteWorkspacePath\": \"/w\"}')",
		"SELECT envrt_create_secret('$company', 'made', 'value')",
		"SELECT envrt_rotate_secret('$secret', 'value')",
		"SELECT envrt_renew_lease('$lease', '1 h')",
		"SELECT envrt_acquire_lease('$company', '$local', '$run', NULL, '$workspace')",
		"SELECT envrt_request_lease('$company', '$local', '$run')",
		"UPDATE public.jobs SET status = CASE status WHEN 'running' THEN 'failed' ELSE 'running' END",
		"SELECT envrt_delete_secret('$doomed')",
		'SELECT envrt_reload_plugins()');
}

# "who in process" of each piece of code, from a part of the log.
sub runs_in
{
	my ($log) = @_;
	my %runs;

	$runs{$2}{"$3 in $1"}++ while $log =~ /\] ([^:]+): LOG:  code (\S+) runs as (\S+)/g;
	return \%runs;
}

my %list;
my $lease;

#######################################################################
# Of the tables' owner, who has no other right: all at once
#######################################################################
{
	my $put = '';

	for my $kind (map { $_->[0] } @kinds)
	{
		$put .= (put($kind, $_, 'own'))[1] . ";\n" for grep { $kind ne 'rule' || !$on_conflict{$_} } @tables;
	}
	sql($put, 'app');
	my $offset = log_end();
	for my $user (qw(postgres tenant))
	{
		my $lease = sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run')", $user);

		for my $call (calls($lease, sql("SELECT envrt_create_secret('$company', 'doomed', 'value')")))
		{
			my ($state, $text) = sql_state($node, $call, psql => { extra_params => [ '-U', $user ] });

			is($state, '00000', "$user, with code of the tables' owner: $call") or diag $text;
		}
		sql("DELETE FROM envrt.company_secrets WHERE name = 'made'", 'app');
	}
	# The scheduler's part.
	my $expiring = sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run', expires_in => '200 ms')");
	ok(wait_until('a lease to expire', sub { sql("SELECT status FROM envrt.environment_leases WHERE id = '$expiring'", 'app') eq 'expired' }), 'a lease expires');
	my $requested = sql("SELECT envrt_request_lease('$company', '$local', '$run')");
	is(sql("SELECT status FROM envrt_await_lease('$requested')"), 'active', 'a requested lease is inserted');

	my $runs = runs_in(log_from($offset));
	for my $kind (map { $_->[0] } @kinds)
	{
		my @wrong;

		for my $table (@tables)
		{
			my ($name) = put($kind, $table, 'own');
			# Policies are asked as the caller to whom they apply, by a SELECT as its own would be.
			my @others = grep { !/^app in / && $_ ne 'tenant in client backend' } keys %{ $runs->{$name} };

			push @wrong, "$table: $_" for @others;
			$list{$kind}{$table} = join ', ', sort map { s/ in client backend//r =~ s/ in envrt (\w+)/ ($1)/r } keys %{ $runs->{$name} };
		}
		is_deeply(\@wrong, [], "$kind of the owner: runs as the owner");
	}
	for my $kind ('trigger function', 'statement trigger', 'deferred trigger', 'rule', 'CHECK', 'default', 'generated column', 'index expression', 'operator')
	{
		my ($name) = put($kind, 'environment_leases', 'own');

		cmp_ok($runs->{$name}{"app in $_"} // 0, '>', 0, "$kind: runs in the $_") for 'client backend', 'envrt scheduler';
	}
}

#######################################################################
# What it leaves in the session of a superuser
#######################################################################
{
	sql("CREATE FUNCTION own.leave() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN EXECUTE TG_ARGV[0]; RETURN NEW; END \$\$;
		CREATE TABLE own.later (i integer); CREATE FUNCTION own.at_commit() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM own.say('at_commit'); RETURN NULL; END \$\$;
		CREATE CONSTRAINT TRIGGER later AFTER INSERT ON own.later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION own.at_commit()", 'app');
	$lease = sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run')");
	my $renew = "SELECT (envrt_renew_lease('$lease', '2 h')).status";
	my $with = sub {
		my ($what, $sql) = @_;

		sql('DROP TRIGGER IF EXISTS leave ON envrt.environment_leases; CREATE TRIGGER leave BEFORE UPDATE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION own.leave(' . literal($what) . ')', 'app');
		return sql_state($node, "CREATE TEMPORARY TABLE t (); $sql");
	};
	my ($state, $text) = $with->("SET search_path = own; SET row_security = off; SET lock_timeout = 1", "$renew; SHOW search_path; SHOW row_security; SHOW lock_timeout");
	is($text, "active\n\"\$user\", public\non\n0", 'settings of a trigger end with the call') or diag $text;
	($state, $text) = $with->('CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (own.yes(VALUE))', "$renew; SELECT 'x'::text");
	is($state, '42501', 'a type in the session\'s temporary schema is refused');
	($state, $text) = $with->('CREATE TEMPORARY TABLE u ()', $renew);
	is($state, '42501', 'a temporary table is refused');
	($state, $text) = $with->('INSERT INTO own.later VALUES (1)', $renew);
	is($state, '42501', 'work for the commit is refused');
	($state, $text) = $with->('SET CONSTRAINTS ALL DEFERRED', "BEGIN; $renew; COMMIT");
	is($state, '42501', 'also of a trigger that was to come at once');
	# The owner in his own session has nobody to be kept from.
	sql('DROP TRIGGER leave ON envrt.environment_leases; CREATE TRIGGER leave BEFORE UPDATE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION own.leave(' . literal('INSERT INTO own.later VALUES (1)') . ')', 'app');
	my $offset = log_end();
	sql($renew, 'app');
	is_deeply(runs_in(log_from($offset))->{at_commit}, { 'app in client backend' => 1 }, 'in a session of the owner himself it is done at the commit');
	sql('DROP TRIGGER leave ON envrt.environment_leases', 'app');
}

# Off again.
{
	my $drop = '';

	for my $table (@tables)
	{
		for my $kind (map { $_->[0] } @kinds)
		{
			next if $kind eq 'rule' && $on_conflict{$table};
			my ($name) = put($kind, $table, 'own');
			$drop .= "DROP TRIGGER $name ON envrt.$table;\n" if $kind =~ /trigger|WHEN/;
			$drop .= "DROP RULE $name ON envrt.$table;\n" if $kind eq 'rule';
			$drop .= "DROP POLICY $name ON envrt.$table; ALTER TABLE envrt.$table DISABLE ROW LEVEL SECURITY;\n" if $kind eq 'policy';
			$drop .= "ALTER TABLE envrt.$table DROP CONSTRAINT IF EXISTS $name, DROP COLUMN IF EXISTS $name;\n";
			$drop .= "DROP INDEX IF EXISTS envrt.$name; DROP STATISTICS IF EXISTS envrt.$name;\n" if $kind =~ /index|statistics/;
			$drop .= "DROP TABLE own.$name;\n" if $kind =~ /^(?:following|child|cascade)/;
			$drop .= "DROP TABLE own.${name}_first;\n" if $kind =~ /^cascade of/;
		}
	}
	sql("SET client_min_messages = warning; $drop", 'app');
}

#######################################################################
# Of somebody else: each by itself, undone afterwards
#######################################################################
sql(<<'SQL');
-- What was said of each call, with the code on the table; nothing of it stays.
CREATE FUNCTION public.try(name text, put text, putter text, calls text[], OUT states text[]) LANGUAGE plpgsql AS $$
DECLARE
    call text;
    role text;
BEGIN
    states := '{}';
    BEGIN
        EXECUTE 'SET LOCAL ROLE ' || putter;
        EXECUTE put;
        EXECUTE 'SET LOCAL ROLE postgres';
        RAISE LOG 'calls begin %', name;
        FOREACH role IN ARRAY ARRAY['postgres', 'tenant'] LOOP
            FOREACH call IN ARRAY calls LOOP
                BEGIN
                    EXECUTE 'SET LOCAL ROLE ' || role;
                    EXECUTE call;
                    SET CONSTRAINTS ALL IMMEDIATE;
                    states := states || '00000'::text;
                EXCEPTION WHEN OTHERS THEN
                    states := states || CASE WHEN SQLERRM ~ '^code on table .* is not trusted$' THEN role ELSE SQLSTATE END;
                END;
            END LOOP;
        END LOOP;
        RAISE LOG 'calls end %', name;
        RAISE EXCEPTION 'undone';
    EXCEPTION WHEN raise_exception THEN
        IF SQLERRM <> 'undone' THEN
            RAISE;
        END IF;
    END;
END $$;
SQL
{
	my $offset = log_end();
	my @tries;
	my @calls = calls($lease, sql("SELECT envrt_create_secret('$company', 'doomed', 'value')"));

	for my $kind (map { $_->[0] } @kinds)
	{
		for my $table (@tables)
		{
			my ($name, $put) = put($kind, $table, 'strange');
			# With the stranger's privileges, or as an owner puts it there who trusts him.
			my $putter = $kind =~ /^cascade of/ ? 'app' : $kind =~ /trigger|WHEN|^following|^cascade/ ? 'stranger' : 'postgres';
			my @some = $table eq 'plugins' || $table eq 'environment_leases' ? @calls : @calls[ 0 .. $#calls - 1 ];

			push @tries, [ $kind, $table, $name, $put, $putter, \@some ];
		}
	}
	my $states = sql(join ";\n", map { 'SELECT states FROM public.try(' . join(', ', map { literal($_) } @$_[ 2 .. 4 ]) . ', ARRAY[' . join(', ', map { literal($_) } @{ $_->[5] }) . '])' } @tries);
	my @states = split /\n/, $states;
	my $log = log_from($offset);

	is(scalar @states, scalar @tries, 'each kind is tried on each table');
	my %wrong;
	for my $try (@tries)
	{
		my ($kind, $table, $name) = @$try;
		my ($part) = $log =~ /calls begin \Q$name\E\n(.*?)calls end \Q$name\E\n/s;
		my $runs = runs_in($part // '')->{$name} // {};
		my $state = shift @states;

		push @{ $wrong{$kind} }, "$table: runs as $_" for grep { !/^stranger in / } keys %$runs;
		# Where nothing is refused it is because nothing runs.
		my $refused = $state =~ /postgres/ && $state =~ /tenant/;
		push @{ $wrong{$kind} }, "$table: not even tried" if !defined $part;
		push @{ $wrong{$kind} }, "$table: $state" if !$refused && ($kind =~ /^cascade/ ? $deleted{$table} : $table eq 'environment_leases' && !$harmless{$kind});
		push @{ $wrong{$kind} }, "$table: refused" if $refused && $kind =~ /^cascade/ && !$deleted{$table};
		$list{"$kind of a stranger"}{$table} = $refused ? 'refused' : %$runs ? join(', ', sort keys %$runs) : 'does not run';
	}
	is_deeply($wrong{$_} // [], [], "$_ of a stranger: refused, or does not run") for map { $_->[0] } @kinds;

	# In the scheduler, on the leases
	for my $kind (map { $_->[0] } grep { !$harmless{ $_->[0] } } @kinds)
	{
		my ($name, $put) = put($kind, 'environment_leases', 'strange');
		my $putter = $kind =~ /trigger|WHEN/ ? 'stranger' : 'postgres';

		# When it has looked at the tables already, and is about to use them.
		sql("SELECT envrt.arm_fault_point('expiry-before-batch'); SELECT envrt_acquire_lease('$company', '$local', '$run', expires_in => '1 ms')");
		wait_until_sql($node, 'SELECT waiting = 1 FROM envrt.stat_fault_points');
		sql("SET ROLE $putter; $put");
		my $put_at = log_end();
		my $before = sql('SELECT clock_timestamp()');
		sql("SELECT envrt.disarm_fault_point('expiry-before-batch')");
		# The log has the first of a kind of error only.
		wait_until_sql($node, "SELECT EXISTS (SELECT FROM envrt.stat_failures WHERE last_error LIKE 'code on table envrt.environment_leases is not trusted%' AND last_attempt_at > '$before')");
		pass("the scheduler refuses a stranger's $kind");
		is_deeply([ grep { / in envrt / && !/^stranger in / } keys %{ runs_in(log_from($put_at))->{$name} // {} } ], [], "and does not run it");
		sql("SET client_min_messages = warning;"
			  . ($kind =~ /trigger|WHEN/ ? "DROP TRIGGER $name ON envrt.environment_leases" : $kind eq 'rule' ? "DROP RULE $name ON envrt.environment_leases"
				: $kind eq 'policy' ? "DROP POLICY $name ON envrt.environment_leases; ALTER TABLE envrt.environment_leases DISABLE ROW LEVEL SECURITY"
				: $kind =~ /index/ ? "DROP INDEX envrt.$name" : $kind eq 'statistics' ? "DROP STATISTICS envrt.$name" : $kind eq 'child table' ? "DROP TABLE strange.$name"
				: "ALTER TABLE envrt.environment_leases DROP CONSTRAINT IF EXISTS $name, DROP COLUMN IF EXISTS $name"));
		# After a reload the scheduler does not wait for longer, and ends what is due.
		sql('SELECT pg_reload_conf()');
		wait_until_sql($node, "SELECT NOT EXISTS (SELECT FROM envrt.environment_leases WHERE status = 'active' AND expires_at < now())");
		$list{"$kind of a stranger, in the scheduler"}{environment_leases} = 'refused';
	}
}

#######################################################################
# A stranger's operators and functions, first in everybody's search_path
#######################################################################
{
	my $plant = '';

	for my $type (qw(uuid text jsonb timestamptz bigint integer boolean))
	{
		$plant .= "CREATE FUNCTION strange.compare($type, $type) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN PERFORM strange.say('operator'); RETURN true; END \$\$;\n";
		$plant .= "CREATE OPERATOR strange.$_ (LEFTARG = $type, RIGHTARG = $type, FUNCTION = strange.compare);\n" for qw(= <> < <= > >=);
	}
	$plant .= "CREATE FUNCTION strange.now() RETURNS timestamptz LANGUAGE plpgsql AS \$\$ BEGIN PERFORM strange.say('function'); RETURN pg_catalog.now(); END \$\$;\n";
	$plant .= "CREATE FUNCTION strange.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS \$\$ BEGIN PERFORM strange.say('function'); RETURN pg_catalog.now(); END \$\$;\n";
	sql($plant, 'stranger');
	sql('GRANT USAGE ON SCHEMA strange TO PUBLIC; ALTER DATABASE postgres SET search_path = strange, public, pg_catalog');
	my $offset = log_end();
	sql("SELECT 1 = 1");
	isnt(runs_in(log_from($offset))->{operator}, undef, 'statements of users find it');
	$offset = log_end();
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type OPERATOR(pg_catalog.~) 'envrt scheduler'");
	for my $call (grep { !/^UPDATE/ } calls(sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run')"), sql("SELECT envrt_create_secret('$company', 'planted', 'value')")))
	{
		my ($state, $text) = sql_state($node, $call);

		is($state, '00000', "with a stranger's operators: $call") or diag $text;
	}
	my $expiring = sql("SELECT id FROM envrt_acquire_lease('$company', '$local', '$run', expires_in => '200 ms')");
	sql('ALTER DATABASE postgres RESET search_path');
	ok(wait_until('a lease to expire', sub { sql("SELECT status FROM envrt.environment_leases WHERE id = '$expiring'") eq 'expired' }), 'the scheduler ends a lease');
	my $requested = sql("SELECT envrt_request_lease('$company', '$local', '$run')");
	is(sql("SELECT status FROM envrt_await_lease('$requested')"), 'active', 'and makes one');
	my $runs = runs_in(log_from($offset));
	is_deeply([ map { $runs->{$_} // () } qw(operator function) ], [], 'no statement of envrt finds them');
}

is(sql("SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper"), 'postgres', 'nobody has become a superuser');

for my $kind (sort keys %list)
{
	note(sprintf '%-50s %-25s %s', $kind, $_, $list{$kind}{$_}) for grep { exists $list{$kind}{$_} } @tables;
}

#######################################################################
# A value that can't be read never means the default
#######################################################################
$node->stop('fast');
for my $line ("envrt.allowed_hosts = '10.0.0.0/8, 192.168.1.0/33'", "envrt.allowed_hosts = ','", "envrt.allowed_host = '10.0.0.0/8'",
	"envrt.sandbox_memory = '1 GX'", "envrt.max_pull = '-1'", "envrt.sandbox_on_data_filesystem = 'perhaps'", "envrt.plugin_path = 'plugins'")
{
	my $offset = log_end();
	my ($name, $value) = split / = /, $line;

	$node->append_conf('postgresql.conf', $line);
	is($node->start(fail_ok => 1), 0, "the server does not start with $line");
	like(log_from($offset), qr/FATAL:  (?:[^\n]*parameter[^\n]*"\Q$name\E"|"?[^\n]*\Q$name\E)/, 'and says why');
	$node->adjust_conf('postgresql.conf', $name, undef);
}
$node->start;
done_testing();
