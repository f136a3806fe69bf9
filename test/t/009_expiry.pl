# Leases end at their time, whoever wrote it, and whatever is in the way of others.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run ();
use Test::More;
use EnvrtSession;
use EnvrtTest;

my $node = new_cluster('expiry');
my $company = make_company($node);
my $run = make_run($node, $company);
my $fake = make_fake_environment($node, $company);
my $reuse = make_fake_environment($node, $company, reuseLease => JSON::PP::true);

wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");

sub expiring
{
	my ($in, $environment) = @_;

	$environment //= $fake;
	return $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$environment', '$run', expires_in => '$in')");
}

# Waits for the end, and tells how late it came, in milliseconds.
sub lateness
{
	my ($lease, $what) = @_;

	wait_until_sql($node, "SELECT status <> 'active' FROM envrt.environment_leases WHERE id = '$lease'", $what);
	return $node->safe_psql('postgres',
		"SELECT CASE status WHEN 'expired' THEN extract(epoch FROM released_at - expires_at) * 1000 END FROM envrt.environment_leases WHERE id = '$lease'");
}

sub on_time
{
	my ($lease, $what) = @_;
	my $late = lateness($lease, $what);

	cmp_ok($late, '>=', 0, "$what: not before its time");
	cmp_ok($late, '<', 1000, "$what: within a second of it");
	return;
}

my $lease = expiring('400 ms');
on_time($lease, 'a lease');
is($node->safe_psql('postgres', "SELECT status, cleanup_status FROM envrt.environment_leases WHERE id = '$lease'"), 'expired|success', 'it is expired, and cleaned up');

# An earlier one while the scheduler sleeps for a later one, and the other way round
my $far = expiring('1 hour');
on_time(expiring('300 ms'), 'an earlier one than the timer');
is($node->safe_psql('postgres', "SELECT status FROM envrt.environment_leases WHERE id = '$far'"), 'active', 'the later one lives');
$node->safe_psql('postgres', "SELECT envrt_renew_lease('$far', '300 ms')");
on_time($far, 'one that is renewed to an earlier time');
# A neighbour's end comes after that one's first.
$lease = expiring('2 s');
my $neighbour = expiring('2100 ms');
$node->safe_psql('postgres', "SELECT envrt_renew_lease('$lease', '1 hour')");
on_time($neighbour, 'a neighbour');
is($node->safe_psql('postgres', "SELECT status FROM envrt.environment_leases WHERE id = '$lease'"), 'active', 'one that is renewed to a later time lives on');

# By plain SQL, and in a transaction that takes its time
$node->safe_psql('postgres', "UPDATE envrt.environment_leases SET expires_at = clock_timestamp() + interval '200 ms' WHERE id = '$lease'");
on_time($lease, 'an expiry set by UPDATE');
$lease = $node->safe_psql('postgres',
	"INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, metadata, expires_at) VALUES ('$company', '$fake', '$run', '{}', clock_timestamp() + interval '200 ms') RETURNING id");
on_time($lease, 'a lease made by INSERT');
$node->safe_psql('postgres', "BEGIN; SELECT envrt_acquire_lease('$company', '$fake', '$run', expires_in => '100 ms'); ROLLBACK");
$lease = $node->safe_psql('postgres', "BEGIN; SELECT id FROM envrt_acquire_lease('$company', '$fake', '$run', expires_in => '1 ms') \\gset\nSELECT pg_sleep(0.1);\nCOMMIT; SELECT :'lease_id'" =~ s/:'lease_id'/:'id'/r);
$lease = (split /\n/, $lease)[-1];
cmp_ok(lateness($lease, 'a lease that was due when it was committed'), '>=', 0, 'a lease that was due when it was committed');

# Expiry frees a reusable sandbox
expiring('300 ms', $reuse);
wait_until('the reusable sandbox to be free',
	sub { (sql_state($node, "SELECT envrt_acquire_lease('$company', '$reuse', '$run')"))[0] eq '00000' });
pass('an expired lease frees its reusable sandbox');

# The default
$node->append_conf('postgresql.conf', "envrt.lease_default_ttl = '1s'");
$node->reload;
wait_until_sql($node, "SELECT setting = '1' FROM pg_settings WHERE name = 'envrt.lease_default_ttl'");
$lease = $node->safe_psql('postgres', "SELECT id FROM envrt_acquire_lease('$company', '$fake', '$run')");
on_time($lease, 'envrt.lease_default_ttl');
$node->append_conf('postgresql.conf', 'envrt.lease_default_ttl = 0');
$node->reload;

# Many at one time
$node->safe_psql('postgres', <<"SQL");
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, metadata, expires_at)
SELECT '$company', '$fake', '$run', '{"many": true}', clock_timestamp() + interval '500 ms' FROM generate_series(1, 1000)
SQL
wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.environment_leases WHERE status = 'active' AND metadata ? 'many'");
cmp_ok($node->safe_psql('postgres', "SELECT extract(epoch FROM max(released_at - expires_at)) * 1000 FROM envrt.environment_leases WHERE metadata ? 'many'"), '<', 10000, '1000 at once');

# A lease that somebody has locked holds up no other
sub session
{
	my ($sql) = @_;
	my $self = { in => "$sql\n\\echo ready\n", out => '', err => '' };

	$self->{handle} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err});
	$self->{handle}->pump until $self->{out} =~ /ready/;
	return $self;
}

sub finish
{
	my ($self, $sql) = @_;

	$self->{in} .= "$sql\n\\q\n";
	$self->{handle}->finish;
	return;
}

my $locked = expiring('500 ms');
my $session = session("BEGIN; SELECT 1 FROM envrt.environment_leases WHERE id = '$locked' FOR UPDATE;");
on_time(expiring('700 ms'), 'beside a locked one');
is($node->safe_psql('postgres', "SELECT status FROM envrt.environment_leases WHERE id = '$locked'"), 'active', 'the locked one is left');
finish($session, 'COMMIT;');
cmp_ok(lateness($locked, 'the locked one'), '>=', 0, 'and ended when it is free');

# Nor does a locked table hold up the scheduler
$lease = expiring('300 ms');
$session = session('BEGIN; LOCK TABLE envrt.environment_leases IN ACCESS EXCLUSIVE MODE;');
my $scheduler = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_schedulers');
$node->safe_psql('postgres', 'SELECT pg_sleep(0.6)');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $scheduler AND (wait_event_type = 'Lock' OR backend_xmin IS NOT NULL)"),
	'0', 'the scheduler waits for no lock and holds no snapshot');
finish($session, 'COMMIT;');
cmp_ok(lateness($lease, 'a lease of the locked table'), '>=', 0, 'and goes on when the table is free');

# A trigger that raises for one lease holds up no other
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'expired' AND NEW.metadata ? 'refuse' THEN
        RAISE 'this one stays';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION refuse();
SQL
$node->safe_psql('postgres', <<"SQL");
INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, metadata, expires_at)
SELECT '$company', '$fake', '$run', CASE WHEN i % 5 = 0 THEN '{"refuse": true}' ELSE '{"neighbour": true}' END::jsonb, clock_timestamp() + interval '300 ms' FROM generate_series(1, 20) i
SQL
wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.environment_leases WHERE status = 'active' AND metadata ? 'neighbour'");
pass('a trigger that raises for some holds up no other');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active' AND metadata ? 'refuse'"), '4', 'those stay');
like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/ERROR:  this one stays\n.*CONTEXT:.*ending leases that have expired: row "[0-9a-f-]+"/s, 'and the log says so');
is($node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_schedulers'), $scheduler, 'the scheduler went on throughout');
$node->safe_psql('postgres', 'DROP TRIGGER refuse ON envrt.environment_leases');

# What was due while the server was down ends at its start
$lease = expiring('1 s');
$node->stop('immediate');
$node->start;
cmp_ok(lateness($lease, 'a lease that was due at the start'), '>=', 0, 'a lease that was due while the server was down');
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active' AND expires_at < now()"), '0', 'none is overdue, the refused ones included');

# The clock is set: the kernel says so, or (a library that shifts it for a process) nobody does
{
	my $directory = temporary_directory();
	my $shift = sub {
		my ($seconds) = @_;

		# In place: the server has it mapped.
		open my $file, '+<', "$directory/shift" or die $!;
		syswrite $file, pack 'q', $seconds;
		close $file;
	};
	my $active = sub { return $node->safe_psql('postgres', "SELECT status FROM envrt.environment_leases WHERE id = '$_[0]'") };

	system('gcc', '-O2', '-D_GNU_SOURCE', '-shared', '-fPIC', '-o', "$directory/shift_clock.so", "$FindBin::RealBin/../lib/shift_clock.c") == 0 or die 'shift_clock.c';
	PostgreSQL::Test::Utils::append_to_file("$directory/shift", pack 'q', 0);
	system('mkfifo', "$directory/set") == 0 or die 'mkfifo';
	$node->stop;
	{
		local $ENV{LD_PRELOAD} = "$directory/shift_clock.so";
		local $ENV{ENVRT_CLOCK_SHIFT} = "$directory/shift";
		local $ENV{ENVRT_CLOCK_SET} = "$directory/set";
		$node->start;
	}
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE state = 'running'");

	$lease = expiring('12 h');
	my $tomorrow = expiring('24 h');
	# It wakes up for its statistics up to ten seconds after its last work.
	$scheduler = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_schedulers');
	my ($wake_ups, $since) = ('', time);
	wait_until('the scheduler to sleep',
		sub {
			my ($now) = PostgreSQL::Test::Utils::slurp_file("/proc/$scheduler/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m;

			($wake_ups, $since) = ($now, time) if $now ne $wake_ups;
			return time - $since > 10;
		});
	$shift->(13 * 3600);
	PostgreSQL::Test::Utils::append_to_file("$directory/set", 'was set!');
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease'", 'the clock is set forward: what is overdue by it ends', 60);
	is($active->($tomorrow), 'active', '... and nothing else');

	$lease = expiring('2 min');
	$shift->(14 * 3600);
	wait_until_sql($node, "SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease'", 'the clock is shifted and nobody says so: what is overdue by it ends', 60);

	$lease = expiring('1 s');
	$shift->(-24 * 3600);
	PostgreSQL::Test::Utils::append_to_file("$directory/set", 'was set!');
	on_time(expiring('300 ms'), 'the clock is set back: one by the new time');
	is($active->($_), 'active', '... and others not before theirs') for $lease, $tomorrow;

	# One that can't begin, since somebody has the ledger locked, takes notice all the same.
	{
		my $session = EnvrtSession->new($node);
		my $find = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'envrt scheduler'";
		my $unread = sub {
			my $bytes = pack 'i', -1;

			# FIONREAD
			open my $fifo, '+<', "$directory/set" or die $!;
			ioctl $fifo, 0x541b, $bytes or die $!;
			return unpack 'i', $bytes;
		};

		is($session->run('BEGIN; LOCK TABLE envrt.provider_leases IN ACCESS EXCLUSIVE MODE')->{state}, '00000', 'the ledger is locked');
		$scheduler = $node->safe_psql('postgres', $find);
		kill 'TERM', $scheduler;
		wait_until('another scheduler', sub { my $pid = $node->safe_psql('postgres', $find); $pid ne '' && $pid ne $scheduler });
		PostgreSQL::Test::Utils::append_to_file("$directory/set", 'was set!');
		wait_until('a scheduler that can\'t begin to read that the clock is set', sub { $unread->() == 0 });
		is($session->run('COMMIT')->{state}, '00000', 'and not any more');
	}
	on_time(expiring('300 ms'), 'and when it can begin');

	$node->stop;
	$node->start;
	# By the true time, which is the later one now.
	is($active->($tomorrow), 'active', 'one that is due tomorrow is active in the end');
}

# A trigger of a table owner without rights gets no more than that one's from the scheduler
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE modest;
CREATE TABLE public.seen (who name, super boolean, escalated boolean);
GRANT INSERT ON public.seen TO modest;
GRANT USAGE ON SCHEMA envrt TO modest;
GRANT SELECT ON envrt.environments TO modest;
CREATE FUNCTION try() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    escalated boolean := true;
BEGIN
    BEGIN
        EXECUTE 'RESET ROLE';
        EXECUTE 'SET ROLE postgres';
        EXECUTE 'ALTER ROLE modest SUPERUSER';
    EXCEPTION WHEN OTHERS THEN
        escalated := false;
    END;
    INSERT INTO public.seen VALUES (current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), escalated);
    RETURN NEW;
END $$;
SQL
$lease = expiring('2 s');
$node->safe_psql('postgres', 'ALTER TABLE envrt.environment_leases OWNER TO modest; CREATE TRIGGER try BEFORE UPDATE ON envrt.environment_leases FOR EACH ROW EXECUTE FUNCTION try()');
cmp_ok(lateness($lease, 'a lease of a table with another owner'), '>=', 0, 'a lease of a table with another owner');
is($node->safe_psql('postgres', 'SELECT DISTINCT who, super, escalated FROM public.seen'), 'modest|f|f', 'its trigger has its owner\'s rights and gets no others');
is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'modest'"), 'f', 'for good');
done_testing();
