# Providers that give an id again, resumes that fail for a while, secrets that are rotated, and what is
# said when what is known of all this is dropped.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtFixture qw(slurp spew temporary_directory);
use EnvrtProvider;
use EnvrtSession;
use PostgreSQL::Test::Utils qw(slurp_file);

my $node = new_cluster('ids', conf => EnvrtProvider::conf() . "fsync = off\nenvrt.cleanup_attempts = 3\n");
my $provider = EnvrtProvider->new;
my $company = make_company($node);
my $agent = make_agent($node, $company);

# One session for all: another psql may take longer than what is to be seen.
my $control = EnvrtSession->new($node);

sub sql
{
	my ($sql) = @_;
	my $result = $control->run($sql);

	die "$sql: $result->{state} $result->{message}" if $result->{state} ne '00000';
	return $result->{out};
}

sub state_of
{
	return $control->run($_[0])->{state};
}

sub await
{
	my ($query, $what) = @_;

	return wait_until($what, sub { sql($query) eq 't' }, 30);
}

sub release_is_under_way
{
	return await("SELECT count(*) = 1 FROM envrt.stat_calls WHERE method = 'environmentReleaseLease'", 'the release to be under way');
}

# Beside the rows of other environments
sub only_one_is_left
{
	my ($environment) = @_;

	return await("SELECT count(*) = 1 FROM envrt.provider_leases WHERE environment_id = '$environment'", 'the others to be gone');
}

sub new_run
{
	return make_run($node, $company, agent => $agent);
}

sub acquire_sql
{
	my ($environment, $run, $of) = @_;

	$of //= $company;
	return "SELECT id FROM envrt_acquire_lease('$of', '$environment', '$run')";
}

sub named
{
	my (%config) = @_;

	return $provider->make_environment($node, $company, named => JSON::PP::true, %config);
}

sub settles
{
	my ($what) = @_;

	return is_deeply([ $provider->settled($control, cleaned => 1, timeout => 30) ], [], "$what: nothing is leaked, lost or held twice");
}

sub test_key
{
	my $file = temporary_directory() . '/key';

	EnvrtFixture::run_command('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', $file);
	return slurp($file);
}

sub effects
{
	my ($environment) = @_;

	return join ' ', map { $_->{what} } $provider->journal("journal://env-$environment");
}

# The same name again, while the destroy of what had it before is under way
{
	my $environment = named(reuseLease => JSON::PP::true);
	my $run = new_run();

	# After a rollback
	$provider->set_knob('destroy-delay', '0.4');
	sql($_) for 'BEGIN', acquire_sql($environment, $run), 'ROLLBACK';
	my $lease = sql(acquire_sql($environment, $run));
	settles('after a rollback');
	is(effects($environment), 'create destroy create', 'after a rollback the next one is made when the last is gone');

	# After a change of the config
	sql("SELECT envrt_release_leases('$run')");
	settles('idle');
	sql("UPDATE envrt.environments SET config = config || '{\"size\": 2}' WHERE id = '$environment'");
	$lease = sql(acquire_sql($environment, $run));
	settles('after a change of the config');
	is(effects($environment), 'create destroy create release destroy create', 'after a change of the config as well');

	# After the provider has lost it
	sql("SELECT envrt_release_leases('$run')");
	settles('idle again');
	unlink glob "$provider->{directory}/exists/*env-$environment";
	my $replaced = sql("SELECT metadata -> 'replacedLease' FROM envrt_acquire_lease('$company', '$environment', '$run')");
	is_deeply(from_json($replaced), { providerLeaseId => "journal://env-$environment", reason => 'the provider says that it has expired' }, 'one that is gone is replaced, which the lease says');
	like(slurp_file($node->logfile), qr/LOG:  the sandbox of environment ".*" is gone and is replaced/, 'and so does the log');
	settles('after a loss');
	is(effects($environment) =~ s/.* (destroy\S* create)$/$1/r, 'destroy-absent create', 'by one that comes when its end is certain');

	# A request, of one that is gone
	sql("SELECT envrt_release_leases('$run')");
	settles('idle once more');
	unlink glob "$provider->{directory}/exists/*env-$environment";
	$lease = sql("SELECT envrt_request_lease('$company', '$environment', '$run')");
	like(sql("SELECT metadata -> 'replacedLease' ->> 'reason' FROM envrt_await_lease('$lease', '30 s')"), qr/expired/, 'a request does the same');
	settles('by request');
	$provider->clear_knobs;
	sql("SELECT envrt_destroy_lease('$lease')");
	settles('in the end');
	is(scalar $provider->sandboxes, 0, 'and it goes');
}

# The name of something that is being destroyed, given to somebody who did not wait
{
	my $environment = named();
	my ($run, $other) = (new_run(), new_run());
	my $first = sql(acquire_sql($environment, $run));

	$provider->set_knob('release-delay', '1.5');
	sql("SELECT envrt_release_leases('$run')");
	release_is_under_way();
	my $lease = sql(acquire_sql($environment, $other));
	only_one_is_left($environment);
	ok($provider->has("journal://env-$environment"), 'its sandbox is there');
	like(effects($environment), qr/^create again .*destroy.* create$/, 'made when the other one was gone');
	is(sql("SELECT state || ' ' || holder_id FROM envrt.provider_leases WHERE environment_id = '$environment'"), "held $lease", 'and it is held');

	# The same for a request
	sql("SELECT envrt_release_leases('$other')");
	release_is_under_way();
	$lease = sql("SELECT envrt_request_lease('$company', '$environment', '$run')");
	is(sql("SELECT status FROM envrt_await_lease('$lease', '30 s')"), 'active', 'a request waits as well');
	only_one_is_left($environment);
	ok($provider->has("journal://env-$environment"), 'and its sandbox is there');
	$provider->clear_knobs;

	# Two leases of one thing: the last one ends it.
	my $second = sql(acquire_sql($environment, $other));
	sql("SELECT envrt_release_lease('$lease')");
	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', 'the first of two has ended');
	ok($provider->has("journal://env-$environment"), 'and the sandbox of the other is there');
	sql("SELECT envrt_release_lease('$second')");
	is(sql("SELECT envrt_await_cleanup('$second')"), 'success', 'the last of two has ended');
	ok(!$provider->has("journal://env-$environment"), 'and the sandbox is gone');
}

# What was made and never learnt of may be what another lease has by now
{
	my $environment = named();
	my ($run, $other) = (new_run(), new_run());
	my $session = EnvrtSession->new($node);

	$provider->set_knob('acquire-late', '3');
	$session->start(acquire_sql($environment, $run));
	wait_until('it to be made', sub { effects($environment) =~ /create$/ });
	$provider->clear_knobs;
	my $lease = sql(acquire_sql($environment, $other));
	sql('SELECT pg_cancel_backend(' . $session->backend . ')');
	is($session->finish->{state}, '57014', 'an acquire is cancelled');
	only_one_is_left($environment);
	ok($provider->has("journal://env-$environment"), 'and what another one has by the same name is there');
	sql("SELECT envrt_release_lease('$lease')");
	settles('an unknown name');
}

# Two companies, one id
{
	my $other_company = make_company($node);
	my $other_agent = make_agent($node, $other_company);
	my $directory = temporary_directory() . '/shared';
	mkdir $directory;
	mkdir "$directory/answers";
	spew("$directory/answers/environmentAcquireLease", to_json({ providerLeaseId => 'the-one' }));
	my %config = (provider => 'recorder', directory => $directory, reuseLease => JSON::PP::true);
	my @leases = map { sql(acquire_sql(make_environment($node, $_->[0], 'sandbox', \%config), make_run($node, $_->[0], agent => $_->[1]), $_->[0])) }
	  [ $company, $agent ], [ $other_company, $other_agent ];

	is(scalar(grep { /^[0-9a-f-]{36}$/ } @leases), 2, 'two companies have one id');
	sql("SELECT envrt_destroy_lease('$leases[0]')");
	is(sql("SELECT envrt_await_cleanup('$leases[0]')"), 'success', 'one of them ends it');
	is(scalar(grep { /Destroy/ } split /\n/, slurp("$directory/calls")), 0, 'and the other one still has it');
	sql("SELECT envrt_destroy_lease('$leases[1]')");
	is(sql("SELECT envrt_await_cleanup('$leases[1]')"), 'success', 'the other ends it too');
	is(scalar(grep { /Destroy/ } split /\n/, slurp("$directory/calls")), 1, 'and then it is destroyed');
}

# A resume that answers with something else: that goes, and what was idle stays
{
	my $directory = temporary_directory() . '/other';
	mkdir $directory;
	mkdir "$directory/answers";
	my $environment = make_environment($node, $company, 'sandbox', { provider => 'recorder', directory => $directory, reuseLease => JSON::PP::true });
	my $run = new_run();
	my $lease = sql(acquire_sql($environment, $run));
	my $id = sql("SELECT provider_lease_id FROM envrt.environment_leases WHERE id = '$lease'");

	sql("SELECT envrt_release_leases('$run')");
	spew("$directory/answers/environmentResumeLease", to_json({ providerLeaseId => 'another', metadata => {} }));
	is(state_of(acquire_sql($environment, $run)), '38000', 'a resume of something else fails');
	await("SELECT count(*) = 1 AND min(state) = 'idle' FROM envrt.provider_leases WHERE environment_id = '$environment'", 'the other to be gone');
	is(join(' ', map { from_json($_)->{params}{providerLeaseId} } grep { /Destroy/ } split /\n/, slurp("$directory/calls")), 'another', 'what was resumed instead is destroyed');
	unlink "$directory/answers/environmentResumeLease";
	is(sql("SELECT provider_lease_id FROM envrt_acquire_lease('$company', '$environment', '$run')"), $id, 'and what was idle is there');

	# One that can't resume at all
	sql("SELECT envrt_release_leases('$run')");
	spew("$directory/answers/environmentResumeLease", to_json({ error => { code => -32004, message => 'environmentResumeLease is not implemented by this plugin' } }));
	isnt(sql("SELECT provider_lease_id FROM envrt_acquire_lease('$company', '$environment', '$run')"), $id, 'a plugin that can not resume has another one made');
	sql("SELECT envrt_release_leases('$run')");
}

# Back to back, in one session
{
	my $environment = named(reuseLease => JSON::PP::true);
	my $run = new_run();

	$provider->set_knob('release-delay', '0.05');
	my $session = EnvrtSession->new($node);
	my @states = map { ($session->run(acquire_sql($environment, $run))->{state}, $session->run("SELECT envrt_release_leases('$run')")->{state}) } 1 .. 5;
	is_deeply([ grep { $_ ne '00000' } @states ], [], 'acquire, release, acquire: what is on its way back is waited for');
	is($provider->count('resume', "journal://env-$environment"), 4, 'and resumed');
	$session->run("BEGIN");
	$session->run(acquire_sql($environment, $run));
	$session->run("SELECT envrt_release_leases('$run')");
	my $own = $session->run(acquire_sql($environment, $run));
	is($own->{state}, '55P03', 'but not within one transaction');
	like($own->{message}, qr/held by a lease of this very transaction/, 'which is what the error says');
	$session->run('ROLLBACK');
	$provider->clear_knobs;
	settles('back to back');
}

# A secret that is rotated, one that is pinned, one that is deleted
{
	my $directory = temporary_directory() . '/keys';
	mkdir $directory;
	mkdir "$directory/answers";
	my $secret = sql("SELECT envrt_create_secret('$company', 'key', 'old-key-of-the-provider')");
	my @environments = map {
		make_environment($node, $company, 'sandbox', { provider => 'recorder', directory => $directory, apiKey => { type => 'secret_ref', secretId => $secret, version => $_ } })
	} 'latest', 1;
	my @leases = map { sql(acquire_sql($_, new_run())) } @environments;
	my $keys = sub {
		my ($method) = @_;
		my @keys = map { $_->{params}{config}{apiKey} } grep { $_->{method} eq "environment$method" } map { from_json($_) } split /\n/, slurp("$directory/calls");
		unlink "$directory/calls";
		return join ' ', @keys;
	};

	is(state_of("SELECT envrt_delete_secret('$secret')"), '55006', 'a secret that is referred to is not deleted');
	sql("SELECT envrt_rotate_secret('$secret', 'new-key-of-the-provider')");
	unlink "$directory/calls";
	sql("SELECT exit_code FROM envrt_execute('$_', 'true')") for @leases;
	is($keys->('Execute'), 'new-key-of-the-provider old-key-of-the-provider', 'latest is the newest at each call, and a number is that version');
	spew("$directory/answers/environmentReleaseLease", to_json({ error => { code => -32002, message => '401' } }));
	sql("SELECT envrt_release_lease('$leases[0]')");
	is(sql("SELECT envrt_await_cleanup('$leases[0]', '30 s')"), 'failed', 'a cleanup that fails with every key');
	is($keys->('ReleaseLease'), 'new-key-of-the-provider old-key-of-the-provider new-key-of-the-provider', 'was tried with the newest first, and with the one it was made with');
	unlink "$directory/answers/environmentReleaseLease";
	sql("DELETE FROM envrt.company_secrets WHERE id = '$secret'");
	spew("$directory/answers/environmentResumeLease", to_json({ providerLeaseId => 'recorder://another', metadata => {} }));
	is(state_of("SELECT envrt_resume_lease('$leases[1]')"), '38000', 'with a secret that is gone another one is resumed');
	await("SELECT count(*) = 1 FROM envrt.provider_leases WHERE environment_id = '$environments[1]'", 'that one to be gone');
	is($keys->('DestroyLease'), 'old-key-of-the-provider', 'it is destroyed by what the ledger has');
	unlink "$directory/answers/environmentResumeLease";
	sql("SELECT envrt_retry_cleanup('$leases[0]')");
	sql("SELECT envrt_release_lease('$leases[1]')");
	is(sql("SELECT envrt_await_cleanup('$_')"), 'success', 'one that is gone is not missed') for @leases;
	like($keys->('ReleaseLease'), qr/^old-key-of-the-provider old-key-of-the-provider$/, 'since the ledger has it');
}

# Secrets that go with their environment, and those that don't
{
	my $own = sql("SELECT id FROM envrt_create_environment('$company', 'own', 'ssh', " . literal(to_json({ host => 'a', username => 'b', remoteWorkspacePath => '/c', privateKey => test_key() })) . ')');
	my $secret = sql("SELECT config -> 'privateKeySecretRef' ->> 'secretId' FROM envrt.environments WHERE id = '$own'");
	my $kept = sql("SELECT envrt_create_secret('$company', 'kept', 'a value')");
	my $other = make_environment($node, $company, 'ssh', { host => 'a', username => 'b', remoteWorkspacePath => '/c', privateKeySecretRef => { type => 'secret_ref', secretId => $secret, version => 'latest' } });
	my $third = make_environment($node, $company, 'ssh', { host => 'a', username => 'b', remoteWorkspacePath => '/c', privateKeySecretRef => { type => 'secret_ref', secretId => $kept, version => 'latest' } });
	my $left = sub { sql("SELECT count(*) FROM envrt.company_secrets WHERE id IN ('$secret', '$kept')") };

	sql("DELETE FROM envrt.environments WHERE id = '$own'");
	is($left->(), 2, 'a secret that another environment refers to stays');
	sql("DELETE FROM envrt.environments WHERE id IN ('$other', '$third')");
	is($left->(), 1, 'one that was made for the environment goes with the last');
	sql("SELECT envrt_delete_secret('$kept')");
	is($left->(), 0, 'and one of the company is deleted by who wants that');
	is(state_of("SELECT envrt_delete_secret('$kept')"), '42704', 'once');
}

# What is left behind is said
{
	my $environment = $provider->make_environment($node, $company);
	my $lease = sql(acquire_sql($environment, new_run()));
	my $count = sql('SELECT count(*) FROM envrt.provider_leases WHERE plugin_key IS NOT NULL');

	for my $drop ('EXTENSION envrt CASCADE', 'SCHEMA public CASCADE')
	{
		my ($status, $out, $err) = $node->psql('postgres', "BEGIN; DROP $drop; ROLLBACK");
		like($err, qr/WARNING:  $count provider leases? (are|is) left behind.*HINT:/s, "DROP $drop says what is left behind");
	}
}

# A database of its own with a lease of a plugin and, where there can be one, a sandbox on this machine
{
	my $boxes = temporary_directory() . '/boxes';
	my $folders = sub { scalar(() = glob "$boxes/leases/*") };
	mkdir $boxes;
	$node->append_conf('postgresql.conf', "envrt.sandbox_directory = '$boxes'\nenvrt.sandbox_on_data_filesystem = on");
	$node->reload;
	if (has_sandboxes())
	{
		my $environment = make_environment($node, $company, 'sandbox', { provider => 'bubblewrap', reuseLease => JSON::PP::true });
		my $run = new_run();
		my $lease = sql(acquire_sql($environment, $run));

		sql("SELECT envrt_release_leases('$run')");
		await("SELECT state = 'idle' FROM envrt.provider_leases WHERE environment_id = '$environment'", 'it to be idle');
		EnvrtFixture::run_command('rm', '-r', "$boxes/leases/$lease");
		like(sql("SELECT metadata -> 'replacedLease' ->> 'reason' FROM envrt_acquire_lease('$company', '$environment', '$run')"), qr/not found/, 'a sandbox of ours that is gone is replaced as well');
		sql("SELECT envrt_destroy_lease(id) FROM envrt.environment_leases WHERE environment_id = '$environment' AND status = 'active'");
		wait_until('it to go', sub { !$folders->() }, 30);
	}
	for my $drop ('EXTENSION', 'DATABASE')
	{
		$node->safe_psql('postgres', 'CREATE DATABASE other');
		$node->safe_psql('other', 'CREATE EXTENSION envrt');
		my $session = EnvrtSession->new($node, database => 'other');
		my $run = sub { my $result = $session->run($_[0]); die "$_[0]: $result->{message}" if $result->{state} ne '00000'; $result->{out} };
		wait_until('its scheduler', sub { $run->("SELECT count(*) FROM envrt.stat_schedulers WHERE database = 'other' AND state = 'running'") });
		my $of = $run->("INSERT INTO envrt.companies (name) VALUES ('c') RETURNING id");
		my $who = $run->("INSERT INTO envrt.agents (company_id, name) VALUES ('$of', 'a') RETURNING id");
		my $for = $run->("INSERT INTO envrt.heartbeat_runs (company_id, agent_id, status) VALUES ('$of', '$who', 'running') RETURNING id");
		for my $config ({ provider => 'journal', directory => $provider->{directory} }, has_sandboxes() ? { provider => 'bubblewrap' } : ())
		{
			my $environment = $run->("INSERT INTO envrt.environments (company_id, name, driver, config) VALUES ('$of', 'e', 'sandbox', " . literal(to_json($config)) . ') RETURNING id');
			$run->("SELECT id FROM envrt_acquire_lease('$of', '$environment', '$for')");
		}
		is($folders->(), 1, 'there is a sandbox on this machine') if has_sandboxes();
		undef $session;
		my ($status, $out, $err) = $drop eq 'DATABASE' ? $node->psql('postgres', 'DROP DATABASE other') : $node->psql('other', 'DROP EXTENSION envrt CASCADE');
		like($err, qr/WARNING:  1 provider lease is left behind.*HINT:/s, "DROP $drop says what is left at plugins");
		ok(wait_until('the sandbox to go', sub { !$folders->() }, 30), 'and what is on this machine goes') if has_sandboxes();
		$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS other');
	}
}

# A copy that is told to forget ends its ssh leases as well
{
	my $environment = make_environment($node, $company, 'ssh', { host => 'a', username => 'b', remoteWorkspacePath => '/c' });
	my $lease = sql("INSERT INTO envrt.environment_leases (company_id, environment_id, provider, metadata) VALUES ('$company', '$environment', 'ssh', '{\"driver\": \"ssh\"}') RETURNING id");

	sql("SELECT envrt_claim_instance('forget')");
	is(sql("SELECT status || ' ' || failure_reason FROM envrt.environment_leases WHERE id = '$lease'"), 'released forgotten_by_claim_instance', 'leases over ssh are forgotten, too');
	cmp_ok(sql("SELECT count(*) FROM envrt.environment_leases WHERE status = 'active' AND provider <> 'ssh'"), '>', 0, 'and what is held here is not');
}
done_testing();
