# Whose a ledger is: a promoted standby carries on where it is told to, and copies of every kind touch
# nothing of the original's until somebody says what they are.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use File::Copy qw(copy);
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);
use EnvrtFixture qw(processes_below run_command spew);
use EnvrtTest;
use EnvrtProvider;
use EnvrtSession;
use PostgreSQL::Test::Utils qw(slurp_file system_or_bail);

my $streaming = <<'CONF';
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
max_connections = 150
wal_log_hints = on
wal_keep_size = 128MB
CONF

sub scheduler_runs
{
	my ($node, $database) = @_;

	$database //= 'postgres';
	return wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.stat_schedulers WHERE database = '$database' AND state = 'running'",
		"a scheduler of $database on " . $node->name);
}

# The server with all that it has started, as when its machine is gone.
sub kill_all
{
	my ($node) = @_;
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my @pids = processes_below($postmaster);

	# The postmaster first: it must not start anything meanwhile.
	kill 'KILL', $postmaster, @pids;
	wait_until('all processes of ' . $node->name . ' to be gone', sub { !grep { kill 0, $_ } $postmaster, @pids });
	$node->{_pid} = undef;
	return;
}

sub standby_of
{
	my ($node, $name, %options) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$node->backup($name) if !$options{backup};
	$standby->init_from_backup($node, $options{backup} // $name, has_streaming => $options{streaming} // 1);
	$standby->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	$standby->start;
	return $standby;
}

#######################################################################
# A cluster with synchronous replication, whose primary dies in the middle of 100 acquires
#######################################################################
{
	my $old = new_cluster('primary', conf => $streaming . EnvrtProvider::conf() . "envrt.act_after_promotion = on\n");
	my $new = standby_of($old, 'standby', conf => "cluster_name = 'standby'");
	my $provider = EnvrtProvider->new;
	my $company = make_company($old);
	my $run = make_run($old, $company);
	my $environment = $provider->make_environment($old, $company);
	my $reusable = $provider->make_environment($old, $company, reuseLease => JSON::PP::true);

	$old->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
	$old->reload;
	wait_until_sql($old, "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')");

	# Who does without durability for his data does not do so for the ledger: what is made has its row
	# on the standby before.
	my $receiver = $new->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
	$old->safe_psql('postgres', 'ALTER DATABASE postgres SET synchronous_commit = off; SELECT pg_terminate_backend(pid) FROM envrt.stat_schedulers');
	scheduler_runs($old);
	kill 'STOP', $receiver;
	is((sql_state($old, "SET statement_timeout = '1s'; SELECT envrt_acquire_lease('$company', '$environment', '$run')"))[0],
		'57014', 'an acquire waits for a standby that does not answer');
	is($provider->count('create'), 0, 'and the provider is not called before the ledger is there, whatever synchronous_commit says');
	kill 'CONT', $receiver;
	$old->safe_psql('postgres', 'ALTER DATABASE postgres RESET synchronous_commit; SELECT pg_terminate_backend(pid) FROM envrt.stat_schedulers');
	scheduler_runs($old);
	is_deeply([ $provider->settled($old) ], [], 'it goes on when the standby does');

	# Something of each kind that is at rest
	acquire($old, $company, $reusable, $run);
	release($old, $run);
	acquire($old, $company, $environment, $run);
	my $busy_run = make_run($old, $company);
	$provider->set_knob('acquire-delay', 0.2);
	$provider->set_knob('acquire-late', 0.3);
	my $script = EnvrtFixture::temporary_directory() . '/acquire.sql';
	spew($script, "\\set ms random(0, 3000)\n\\sleep :ms ms\nSELECT envrt_acquire_lease('$company', '$environment', '$busy_run');\n");
	my $output = '';
	my $bench = IPC::Run::start([ 'pgbench', '-n', '-c', 100, '-j', 2, '-t', 1, '-f', $script, $old->connstr('postgres') ], '&>', \$output);
	wait_until('a part of 100 acquires to be through', sub { $provider->count('create') >= 40 });
	kill_all($old);
	my $made = $provider->count('create');
	$bench->finish;
	cmp_ok($made, '<', 100, "the primary dies in the middle of 100 acquires ($made were made)");

	my $start = time;
	$new->promote;
	# It is the only one now.
	$new->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	$new->reload;
	my @problems = $provider->settled($new, timeout => 15 - (time - $start), cleaned => 1);
	my $seconds = time - $start;
	is_deeply(\@problems, [], 'the promoted server has settled every row within 15 seconds') or diag $new->name . ' after ' . $seconds;
	note sprintf 'settled after %.1f s', $seconds;
	my $active = $new->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = '$busy_run' AND status = 'active'");
	cmp_ok($active, '>', 0, "$active leases were committed and live on");
	cmp_ok($active, '<', $made, 'what was made for the others is destroyed');
	like(slurp_file($new->logfile), qr/LOG:  took over \d+ provider leases after a promotion/, 'the log says so');

	# A lease goes on across the promotion
	is($new->safe_psql('postgres', "SELECT count(*) FROM envrt_release_leases('$busy_run')"), $active, 'leases of the old primary are released');
	my $resumed = acquire($new, $company, $reusable, $run);
	is($provider->count('resume'), 1, 'and what was idle is resumed');
	$provider->clear_knobs;
	is_deeply([ $provider->settled($new, cleaned => 1) ], [], 'all is settled after that');

	# The old one comes back as a standby
	my $conf = $old->data_dir . '/postgresql.conf';
	my $own = EnvrtFixture::temporary_directory() . '/postgresql.conf';
	copy($conf, $own) or die "can't copy: $!";
	# Before 16 it asks the control file which timeline that is.
	$new->safe_psql('postgres', 'CHECKPOINT');
	system_or_bail 'pg_rewind', '-D', $old->data_dir, '--source-server', $new->connstr('postgres'), '--no-sync';
	copy($own, $conf) or die "can't copy: $!";
	$old->enable_streaming($new);
	my $offset = -s $old->logfile;
	$old->start;
	release($new, $run);
	acquire($new, $company, $environment, $run);
	$new->safe_psql('postgres', "INSERT INTO envrt.environment_leases (company_id, environment_id, heartbeat_run_id, metadata, expires_at) VALUES ('$company', '$environment', '$run', '{}', now())");
	is_deeply([ $provider->settled($new, cleaned => 1, foreign => 1) ], [], 'the new primary works');
	$new->wait_for_catchup($old, 'replay');
	is($old->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', 'the old one is a standby');
	is($old->safe_psql('postgres', 'SELECT count(*) FROM envrt.stat_schedulers'), '0', 'it has no scheduler');
	is((sql_state($old, "SELECT envrt_acquire_lease('$company', '$environment', '$run')"))[0], '25006', 'and refuses to acquire');
	is((sql_state($old, "SELECT envrt_claim_instance('take_over')"))[0], '25006', 'and to be claimed');
	my %of_new = map { $_ => 1 } EnvrtProvider::worker_pids($new);
	is_deeply([ grep { $_->{time} > $start && !$of_new{ $_->{pid} } } $provider->journal ], [], 'everything since the promotion was done by the new primary');
	unlike(substr(slurp_file($old->logfile), $offset), qr/provider lease/, 'the old one has nothing to say about leases');
	$old->stop('immediate');
	$new->stop('immediate');
}

#######################################################################
# Copies
#######################################################################
my $original = new_cluster('original', conf => ($streaming =~ s/= replica/= logical/r) . EnvrtProvider::conf());
my $provider = EnvrtProvider->new;
my $company = make_company($original, 'The company');
my $ephemeral = $provider->make_environment($original, $company, leasePolicy => 'retain_on_failure');
my ($reusable, $busy) = map { $provider->make_environment($original, $company, reuseLease => JSON::PP::true) } 1 .. 2;
my %run = map { $_ => make_run($original, $company) } qw(end released destroyed deleted expired resumed retained failing held asked idle open);
my %lease;

# Whatever a lease can be: active in many ways, retained, being cleaned up in vain, idle, waited for.
$lease{$_} = acquire($original, $company, $ephemeral, $run{$_}) for qw(end released destroyed deleted expired resumed retained failing);
$lease{held} = acquire($original, $company, $busy, $run{held});
my $request = $original->safe_psql('postgres', "SELECT envrt_request_lease('$company', '$busy', '$run{asked}')");
acquire($original, $company, $reusable, $run{idle});
release($original, $run{idle});
$original->safe_psql('postgres', "SELECT envrt_release_leases('$run{retained}', 'failed')");
$provider->set_knob('release-fail', 'always', $lease{failing}{id});
$provider->set_knob('destroy-fail', 'always', $lease{failing}{id});
release($original, $run{failing});
wait_until_sql($original, "SELECT count(*) = 1 FROM envrt.stat_cleanup WHERE last_error LIKE '%knob%'");
wait_until_sql($original, "SELECT count(*) = 1 FROM envrt.stat_cleanup WHERE state = 'idle'");

# What there is of the original's, and what was done to it.
sub evidence
{
	return join "\n", (map { join ' ', map { $_ // '-' } @$_{qw(time what lease id how)} } $provider->journal), map { "@$_" } $provider->sandboxes;
}

# Waits until the log has it, of a server or, with a database, since an offset.
sub log_says
{
	my ($node, $offset, $pattern, $what) = @_;

	my $said = eval { wait_until($what, sub { substr(slurp_file($node->logfile), $offset) =~ $pattern }, 15) };
	ok($said, $what) or diag substr(slurp_file($node->logfile), $offset);
	return;
}

# All that can be done to a lease in a copy, and a restart in the middle.  Options: database, known
# (the copy has the ledger's rows), log (from where on its log is the copy's), restart.
sub leaves_alone
{
	my ($name, $node, %options) = @_;
	my $database = $options{database} // 'postgres';
	my $offset = $options{log} // 0;
	my $before = $options{before};
	my $sql = sub { $node->safe_psql($database, $_[0]) };

	scheduler_runs($node, $database);
	log_says($node, $offset, qr/LOG:  left alone (what )?\d+ (provider )?leases/, "$name: the log says what is left alone");
	like($sql->("SELECT string_agg(DISTINCT made_by, ',') FROM envrt.stat_cleanup"), qr/^foreign$/, "$name: so does the view");
	my $expected = $options{known} ? $options{known} : "SELECT count(*) FROM envrt.environment_leases WHERE status IN ('active', 'retained')";
	is($sql->('SELECT count(*) FROM envrt.stat_cleanup'), $expected =~ /^\d+$/ ? $expected : $sql->($expected), "$name: of every one");

	$sql->("SELECT envrt_release_leases('$run{released}')");
	$sql->("SELECT envrt_destroy_lease('$lease{destroyed}{id}')");
	$sql->("DELETE FROM envrt.environment_leases WHERE id = '$lease{deleted}{id}'");
	$sql->("SELECT envrt_renew_lease('$lease{expired}{id}', '1 ms')");
	$sql->("UPDATE envrt.heartbeat_runs SET status = 'failed' WHERE id = '$run{end}'");
	$sql->("UPDATE envrt.environments SET config = config || '{\"x\": 1}' WHERE id = '$reusable'");
	is((sql_state($node, "SELECT envrt_resume_lease('$lease{resumed}{id}')", database => $database))[0], '55000', "$name: a lease is not resumed");
	sql_state($node, "SELECT envrt_retry_cleanup('$lease{failing}{id}')", database => $database);
	sql_state($node, "SELECT envrt_forget_provider_lease('$lease{failing}{id}')", database => $database);
	wait_until("$name: the lease to expire",
		sub { $sql->("SELECT status = 'expired' FROM envrt.environment_leases WHERE id = '$lease{expired}{id}'") eq 't' });
	if ($options{restart} // 1)
	{
		$node->restart;
		scheduler_runs($node, $database);
	}

	# A lease of its own works, from the beginning to the end; so its scheduler has looked at all else.
	my $own = EnvrtProvider->new;
	my $run = $sql->("INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) SELECT company_id, id, 'running' FROM envrt.agents LIMIT 1 RETURNING id");
	my $environment = $sql->("INSERT INTO envrt.environments (company_id, name, driver, config) VALUES ('$company', 'of $name', 'sandbox', "
		  . literal(to_json({ provider => 'journal', directory => $own->{directory} })) . ') RETURNING id');
	my $lease = $sql->("SELECT id FROM envrt_acquire_lease('$company', '$environment', '$run')");
	is(scalar $own->sandboxes, 1, "$name: a lease of its own is made");
	$sql->("SELECT envrt_release_leases('$run')");
	is($sql->("SELECT envrt_await_cleanup('$lease')"), 'success', "$name: and cleaned up");
	is($options{evidence} // evidence(), $before, "$name: nothing of the original's was touched");
	return;
}

sub forgets
{
	my ($name, $node, %options) = @_;
	my $database = $options{database} // 'postgres';

	is((sql_state($node, "SELECT envrt_claim_instance('sell')", database => $database))[0], '22023', "$name: a claim that is none");
	my $count = $node->safe_psql($database, "SELECT envrt_claim_instance('forget')");
	cmp_ok($count, '>', 0, "$name: forgets $count rows of the ledger") if $options{known};
	wait_until("$name: nothing to be foreign", sub { $node->safe_psql($database, "SELECT count(*) = 0 FROM envrt.stat_cleanup WHERE made_by = 'foreign'") eq 't' });
	is($node->safe_psql($database, "SELECT count(*) FROM envrt.environment_leases WHERE status IN ('active', 'retained')"), '0', "$name: then none of the original's leases is active in it");
	is($node->safe_psql($database, "SELECT count(*) FROM envrt.environment_leases WHERE cleanup_status = 'pending'"), '0', "$name: nor waits for a cleanup that does not come");
	is($node->safe_psql($database, 'SELECT count(*) FROM envrt.lease_requests'), '0', "$name: nor is anything requested");
	is(evidence(), $options{before}, "$name: and still nothing of the original's was touched");
	return;
}

my $rows = $original->safe_psql('postgres', 'SELECT count(*) FROM envrt.provider_leases');
cmp_ok($rows, '==', 10, 'the original has rows of every kind');


# A dump, restored beside the original and in another server
{
	my $other = new_cluster('restored', conf => EnvrtProvider::conf(), extension => 0);
	my $dump = EnvrtFixture::temporary_directory() . '/dump';

	run_command('pg_dump', '-Fc', '-f', $dump, $original->connstr('postgres'));
	for my $case ([ 'a dump restored beside', $original, 'restored' ], [ 'a dump restored elsewhere', $other, 'postgres' ])
	{
		my ($name, $node, $database) = @$case;
		my $offset = -s $node->logfile;
		my $before = evidence();

		$node->safe_psql('postgres', "CREATE DATABASE $database") if $database ne 'postgres';
		run_command('pg_restore', '-d', $node->connstr($database), $dump);
		leaves_alone($name, $node, database => $database, log => $offset, before => $before);
		forgets($name, $node, database => $database, before => $before);
	}
	$other->stop('immediate');
	$original->safe_psql('postgres', 'DROP DATABASE restored');
}

# CREATE DATABASE ... TEMPLATE
{
	my $offset = -s $original->logfile;
	my $before = evidence();

	$original->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres');
	scheduler_runs($original);
	leaves_alone('a template copy', $original, database => 'twin', log => $offset, known => $rows, before => $before);
	forgets('a template copy', $original, database => 'twin', known => 1, before => $before);
	$original->safe_psql('postgres', 'DROP DATABASE twin');
}

# A logical replica of everything there is, the ledger included
{
	my $replica = new_cluster('replica', conf => EnvrtProvider::conf());
	my $before = evidence();

	$original->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
	$replica->safe_psql('postgres', 'CREATE SUBSCRIPTION everything CONNECTION ' . literal($original->connstr('postgres')) . ' PUBLICATION everything');
	$replica->wait_for_subscription_sync($original, 'everything') if $replica->can('wait_for_subscription_sync');
	wait_until_sql($replica, "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')", 'the tables to be copied');
	# One that comes by replication, and not with the first copy
	$original->safe_psql('postgres', "INSERT INTO envrt.companies (name) VALUES ('late')");
	wait_until_sql($replica, "SELECT count(*) = 1 FROM envrt.companies WHERE name = 'late'", 'a change to be replicated');
	leaves_alone('a logical replica', $replica, known => $rows, before => $before);
	$replica->safe_psql('postgres', 'DROP SUBSCRIPTION everything');
	forgets('a logical replica', $replica, known => 1, before => $before);
	$replica->stop('immediate');

	# Of the leases alone, without the ledger
	my $partial = new_cluster('partial', conf => EnvrtProvider::conf());
	$original->safe_psql('postgres', 'DROP PUBLICATION everything;'
		  . ' CREATE PUBLICATION leases FOR TABLE envrt.companies, envrt.agents, envrt.heartbeat_runs, envrt.environments, envrt.environment_leases');
	$partial->safe_psql('postgres', 'CREATE SUBSCRIPTION leases CONNECTION ' . literal($original->connstr('postgres')) . ' PUBLICATION leases');
	wait_until_sql($partial, "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')", 'the tables to be copied');
	leaves_alone('a logical replica of some tables', $partial, before => $before);
	$partial->safe_psql('postgres', 'DROP SUBSCRIPTION leases');
	forgets('a logical replica of some tables', $partial, before => $before);
	$partial->stop('immediate');
	$original->safe_psql('postgres', 'DROP PUBLICATION leases');
}

# From here on with one that is being made: its transaction is open in the original, and over in a copy.
my $session = EnvrtSession->new($original);
is($session->run("BEGIN; SELECT status FROM envrt_acquire_lease('$company', '$ephemeral', '$run{open}')")->{out}, 'active', 'a lease that is not committed');
$original->backup('base');

# A base backup, restored as a server of its own: same system, same timeline
{
	my $before = evidence();
	my $clone = standby_of($original, 'clone', backup => 'base', streaming => 0);

	is($clone->safe_psql('postgres', 'SELECT timeline_id FROM pg_control_checkpoint()'), '1', 'a clone has the timeline of the original');
	leaves_alone('a clone', $clone, known => $rows + 1, before => $before);
	forgets('a clone', $clone, known => 1, before => $before);
	$clone->stop('immediate');
}

# A standby that is promoted, by default
{
	my $before = evidence();
	my $standby = standby_of($original, 'promoted', backup => 'base');

	$original->wait_for_catchup($standby, 'replay');
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM envrt.stat_schedulers'), '0', 'a standby has no scheduler');
	is($standby->safe_psql('postgres', 'SELECT count(*) > 0, string_agg(DISTINCT made_by, \' \') FROM envrt.stat_cleanup c JOIN envrt.provider_leases p USING (lease_id)'),
		't|unknown', 'and says of no row of the ledger that it is somebody else\'s');
	$standby->promote;
	leaves_alone('a promoted standby', $standby, known => $rows + 1, before => $before);

	# The original is really gone, and this is its successor.
	kill_all($original);
	$session->run('SELECT 1');
	is($standby->safe_psql('postgres', "SELECT envrt_claim_instance('take_over')"), $rows + 1, 'a promoted standby takes over every row');
	$provider->clear_knobs;
	# Unless its next attempt, which succeeds, was due by then.
	my ($retried) = sql_state($standby, "SELECT envrt_retry_cleanup('$lease{failing}{id}')");
	ok($retried eq '00000' || $retried eq '42704', 'what failed on the original can be tried again') or diag $retried;
	release($standby, $run{held});
	is($standby->safe_psql('postgres', "SELECT status FROM envrt_await_lease('$request')"), 'active', 'what was requested of the original is acquired by its successor');
	is_deeply([ $provider->settled($standby, cleaned => 1) ], [], 'all that it took over is settled');
	is($provider->count('destroy', $lease{released}{id}), 1, 'what was released in it is cleaned up');
	is_deeply([ sort keys %{ $provider->existing } ], [ sort map { $lease{$_}{id} } qw(resumed retained held end) ], 'what is held or retained lives on');
	$standby->stop('immediate');

	# The original, back to life from where it was: its ledger is its own.
	my $offset = -s $original->logfile;
	$original->start;
	scheduler_runs($original);
	is($original->safe_psql('postgres', "SELECT string_agg(DISTINCT made_by, ',') FROM envrt.stat_cleanup"), 'own', 'the original itself stays the original');
	unlike(substr(slurp_file($original->logfile), $offset), qr/left alone/, 'and has nothing to leave alone');
}

# The files of the original, put back into its place from a copy: not the original
{
	my $data = $original->data_dir;
	my $before;

	$original->stop;
	run_command('cp', '-a', $data, "$data.copy");
	rename $data, "$data.own" or die "can't rename: $!";
	rename "$data.copy", $data or die "can't rename: $!";
	$before = evidence();
	my $offset = -s $original->logfile;
	$original->start;
	scheduler_runs($original);
	log_says($original, $offset, qr/LOG:  this data directory is a copy of another one/, 'a data directory that was restored from a copy is known as one');
	is($original->safe_psql('postgres', "SELECT string_agg(DISTINCT made_by, ',') FROM envrt.stat_cleanup"), 'foreign', 'and leaves alone what it held');
	$original->stop;
	is(evidence(), $before, 'nothing was touched');
	run_command('rm', '-rf', $data);
	rename "$data.own", $data or die "can't rename: $!";
	$offset = -s $original->logfile;
	$original->start;
	scheduler_runs($original);
	is($original->safe_psql('postgres', "SELECT string_agg(DISTINCT made_by, ',') FROM envrt.stat_cleanup"), 'own', 'one that was moved is still itself');
}
done_testing();
