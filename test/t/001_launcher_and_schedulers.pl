# Launcher and schedulers: they come and go with the extension and its databases, and are in
# nobody's way.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;

my $node = new_cluster('processes', extension => 0, conf => "max_worker_processes = 12\nmax_prepared_transactions = 2");

sub schedulers
{
	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(d.datname, ',' ORDER BY d.datname), '') FROM pg_stat_activity a"
		  . " JOIN pg_database d ON d.oid = a.datid WHERE a.backend_type = 'envrt scheduler'");
}

sub running
{
	my ($expected, $what) = @_;

	is(wait_until($what, sub { schedulers() eq $expected ? "=$expected" : undef }), "=$expected", $what);
	return;
}

# No extension: a launcher, and no scheduler once every database has been looked at.
wait_until_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'envrt launcher'");
running('', 'no scheduler without the extension');

$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION envrt; ROLLBACK');
$node->safe_psql('postgres', 'CREATE EXTENSION envrt');
my $start = time;
running('postgres', 'CREATE EXTENSION starts a scheduler');
cmp_ok(time - $start, '<=', 2, 'within a second or so');
is( $node->safe_psql('postgres', 'SELECT database, state FROM envrt.stat_schedulers'),
	'postgres|running',
	'stat_schedulers shows it');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'envrt%' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL)"),
	'0',
	'neither holds a transaction or a snapshot');

# Databases are found, whatever way they got the extension.
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION envrt');
running('other,postgres', 'a second database gets its own');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other');
running('copy,other,postgres', 'CREATE DATABASE ... TEMPLATE works on a database with a scheduler; both have one afterwards');
$node->safe_psql('postgres', 'ALTER DATABASE other RENAME TO renamed');
running('copy,postgres,renamed', 'so does RENAME');
$node->safe_psql('postgres', 'DROP DATABASE copy');
running('postgres,renamed', 'and DROP DATABASE');

# Somebody who may not drop the database doesn't even stop its scheduler.
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
my $pid = $node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = 'renamed'");
is((sql_state($node, 'DROP DATABASE renamed', psql => { extra_params => [ '-U', 'nobody' ] }))[0],
	'42501', 'DROP DATABASE by somebody else is refused');
is($node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = 'renamed'"),
	$pid, 'and its scheduler goes on');

# A statement that fails gives the scheduler back.
$node->safe_psql('postgres', 'CREATE DATABASE taken');
is((sql_state($node, 'CREATE DATABASE taken TEMPLATE renamed'))[0], '42P04', 'a failing CREATE DATABASE');
running('postgres,renamed', 'leaves every database with its scheduler');

# Several in one transaction, with a scheduler and without
$node->safe_psql('postgres', 'CREATE DATABASE bare');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE renamed RENAME TO r2; ALTER DATABASE bare RENAME TO bare2; COMMIT');
running('postgres,r2', 'two databases renamed in one transaction');
$node->safe_psql('bare2', 'CREATE EXTENSION envrt');
running('bare2,postgres,r2', 'both with a scheduler');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE r2 RENAME TO r3; ALTER DATABASE bare2 RENAME TO bare3; ROLLBACK');
running('bare2,postgres,r2', 'both renamed, rolled back');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE r2 RENAME TO renamed; ALTER DATABASE bare2 RENAME TO bare3; COMMIT');
running('bare3,postgres,renamed', 'both renamed');

# A template has none, nor has one that takes no connections
$node->safe_psql('postgres', 'ALTER DATABASE bare3 IS_TEMPLATE true');
running('postgres,renamed', 'a database that becomes a template loses its scheduler');
{
	my ($state, $message) = sql_state($node, 'SELECT envrt_retry_cleanup(gen_random_uuid())', database => 'bare3');

	is($state, '55000', 'what needs one there fails');
	like($message, qr/this database is a template, so it has no envrt scheduler\n.*HINT:  ALTER DATABASE bare3 IS_TEMPLATE false;/s, 'and says what is the matter');
}
$node->safe_psql('postgres', 'ALTER DATABASE bare3 IS_TEMPLATE false');
running('bare3,postgres,renamed', 'and gets it back');
$node->safe_psql('postgres', 'ALTER DATABASE bare3 ALLOW_CONNECTIONS false');
running('postgres,renamed', 'so does one that takes no connections');
# As a DROP DATABASE leaves one that was interrupted; the next one that is made has the launcher look.
{
	my $logged = -s $node->logfile;

	$node->safe_psql('postgres', "UPDATE pg_database SET datconnlimit = -2, datallowconn = true WHERE datname = 'bare3'; CREATE DATABASE looked");
	$node->safe_psql('looked', 'CREATE EXTENSION envrt');
	running('looked,postgres,renamed', 'nor has an invalid one');
	unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged), qr/FATAL/, 'and nobody tries to connect to it');
	$node->safe_psql('postgres', "UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'bare3'; DROP DATABASE looked");
	running('bare3,postgres,renamed', 'and it gets one when it is valid again');
}
$node->safe_psql('postgres', 'DROP DATABASE bare3');

# Prepared transactions
$node->safe_psql('renamed', "BEGIN; DROP EXTENSION envrt; PREPARE TRANSACTION 'drop'");
$node->safe_psql('renamed', "COMMIT PREPARED 'drop'");
running('postgres', 'DROP EXTENSION in a prepared transaction');
$node->safe_psql('renamed', "BEGIN; CREATE EXTENSION envrt; PREPARE TRANSACTION 'create'");
$node->safe_psql('renamed', "COMMIT PREPARED 'create'");
running('postgres,renamed', 'and CREATE EXTENSION in one');

# DROP EXTENSION ends it, its ROLLBACK does not.
$pid = $node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = 'renamed'");
$node->safe_psql('renamed', 'BEGIN; DROP EXTENSION envrt; ROLLBACK');
is($node->safe_psql('postgres', "SELECT pid FROM envrt.stat_schedulers WHERE database = 'renamed'"),
	$pid, 'DROP EXTENSION rolled back: the same scheduler goes on');
$node->safe_psql('renamed', 'DROP EXTENSION envrt');
running('postgres', 'DROP EXTENSION ends it');
$node->safe_psql('renamed', 'CREATE EXTENSION envrt');
running('postgres,renamed', 'and CREATE EXTENSION starts it again');

# Ended by hand, both come back.
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'envrt scheduler'");
wait_until_sql($node,
	"SELECT count(*) = 2 FROM envrt.stat_schedulers WHERE state = 'running' AND pid <> $pid");
running('postgres,renamed', 'schedulers ended by pg_terminate_backend come back');
my $launcher = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'envrt launcher'");
my $host = $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
wait_until_sql($node,
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'envrt launcher' AND pid <> $launcher");
wait_until_sql($node, "SELECT state = 'running' AND pid <> $host FROM envrt.stat_driver_host");
pass('the launcher comes back, with a new driver host');
is($node->safe_psql('postgres', "SELECT kill FROM (SELECT count(*) AS kill FROM envrt.stat_schedulers WHERE state = 'running') x"),
	'2', 'and the schedulers went on');
$node->safe_psql('postgres', 'DROP DATABASE renamed');
running('postgres', 'the new launcher still gives databases free');

# Out of worker slots: said once, with a hint, and tried again.
my $logged = -s $node->logfile;
$node->safe_psql('postgres', "CREATE DATABASE many$_ TEMPLATE postgres") for 1 .. 12;
wait_until('the launcher to say that it is out of slots',
	sub { PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged) =~ /out of background worker slots/ });
$node->safe_psql('postgres', "DROP DATABASE many$_") for 1 .. 9;
running('many10,many11,many12,postgres', 'the others get theirs when there are slots again');
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged);
is(scalar(() = $log =~ /out of background worker slots/g), 1, 'said once');
like($log, qr/HINT:  Raise max_worker_processes/, 'with a hint');

# Which server it is can't be read: said once, tried again, and nothing is done before.
{
	my $file = $node->data_dir . '/pg_envrt/instance';
	my $said = sub { return scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile, $logged) =~ /could not open file "pg_envrt\/instance"/g) };

	$node->stop('fast');
	chmod 0, $file or die $!;
	$logged = -s $node->logfile;
	$node->start;
	wait_until('the launcher to say that it does not know which server it is', sub { $said->() > 0 });
	# It tries again a second later, and three.
	sleep 4;
	is($said->(), 1, 'a file of the instance that can\'t be read is said once');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM envrt.stat_schedulers'), '0', 'without it there is no scheduler');
	chmod 0600, $file or die $!;
	$node->reload;
	running('many10,many11,many12,postgres', 'after a reload there is');
}

$node->stop('fast');
pass('a fast shutdown is not held up');
done_testing();
