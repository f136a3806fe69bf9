# Environments that a plugin makes, sandboxes and those of the driver plugin: what exactly the plugin is
# asked, what becomes of what it says, and that what an environment or a lease has become since does not
# matter.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtFixture qw(slurp spew);
use EnvrtProvider;
use EnvrtRecorder;
use EnvrtSession;

my $node = new_cluster('plugins', conf => EnvrtProvider::conf());
my $company = make_company($node);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $recorder;
my $directory;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub row
{
	return from_json(sql("SELECT to_jsonb(r) FROM ($_[0]) r"));
}

sub new_directory
{
	$recorder = EnvrtRecorder->new($node, $company, @_);
	return $directory = $recorder->{directory};
}

sub calls
{
	return $recorder->calls;
}

sub sandbox
{
	return $recorder->sandbox(@_);
}

sub of_driver
{
	return $recorder->of_driver(@_);
}

sub cleaned_up
{
	my ($lease, $what) = @_;

	is(sql("SELECT envrt_await_cleanup('$lease')"), 'success', "$what: cleanup_status");
	return;
}

my $plugin_id = row('SELECT * FROM envrt_acquire_lease(' . join(', ', map { "'$_'" } $company, do { new_directory(); of_driver() }, make_run($node, $company)) . ')')->{metadata}{pluginId};
like($plugin_id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, 'a plugin without a row has an id all the same');

#######################################################################
# The driver plugin
#######################################################################
{
	new_directory();
	my $environment = of_driver(template => 'base');
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment, $run);
	my %base = (driverKey => 'recorder-env', companyId => $company, environmentId => $environment, config => { directory => $directory, template => 'base' });
	my %added = (leaseId => $lease->{id}, fence => 1);

	is_deeply([ calls() ], [ [ environmentAcquireLease => { %base, %added, runId => $run } ] ], 'plugin: what an acquire asks');
	my $said = {
		remoteCwd => '/workspace', nested => { list => [ 1, 'two', undef ] },
		map { $_ => 'forged' } qw(driver driverKey executionWorkspaceMode pluginId pluginKey provider reuseLease sandboxProviderPlugin)
	};
	my $metadata = {
		driver => 'plugin', pluginId => $plugin_id, pluginKey => 'envrt.recorder', driverKey => 'recorder-env', executionWorkspaceMode => undef,
		providerMetadata => $said
	};
	is_deeply($lease->{metadata}, $metadata, 'plugin: what the plugin said is under providerMetadata, unchanged, and the rest is ours');
	is_deeply([ @$lease{qw(status provider lease_policy)} ], [ 'active', 'plugin:envrt.recorder:recorder-env', 'ephemeral' ], 'plugin: provider and policy');
	like($lease->{provider_lease_id}, qr{^recorder://}, 'plugin: the provider lease id is the plugin\'s');
	is(sql("SELECT expires_at = '2099-01-02 03:04:05.678+00' FROM envrt.environment_leases WHERE id = '$lease->{id}'"), 't', 'plugin: so is the end of it');
	is(sql("SELECT provider, state FROM envrt.stat_cleanup WHERE lease_id = '$lease->{id}'"), 'plugin:envrt.recorder:recorder-env|held', 'plugin: it is in the ledger');

	my $of_lease = { providerLeaseId => $lease->{provider_lease_id}, metadata => $metadata, expiresAt => '2099-01-02T03:04:05.678Z' };
	my %later = (%base, %added, providerLeaseId => $lease->{provider_lease_id}, leaseMetadata => $metadata);
	is(from_json(sql("SELECT envrt_resume_lease('$lease->{id}')"))->{providerLeaseId}, $lease->{provider_lease_id}, 'plugin: resume answers');
	is_deeply([ calls() ], [ [ environmentResumeLease => {%later} ] ], 'plugin: what a resume asks');

	is_deeply(from_json(sql("SELECT envrt_realize_workspace('$lease->{id}', '{\"localPath\": \"/tmp/x\", \"mode\": \"m\"}')")),
		{ cwd => '/workspace', metadata => { realized => $true } }, 'plugin: realize answers what the plugin says');
	my ($realize) = calls();
	is_deeply($realize->[1]{workspace}, { localPath => '/tmp/x', mode => 'm' }, 'plugin: what a realize is given');
	is_deeply($realize->[1]{lease}, $of_lease, 'plugin: and the lease');

	is_deeply(row("SELECT * FROM envrt_execute('$lease->{id}', 'echo', ARRAY['a', 'b c'], '/w', '{\"K\": \"v\"}', 'in', '2 s')"),
		{ exit_code => 0, signal => undef, timed_out => $false, stdout => "ok\n", stderr => '', metadata => undef }, 'plugin: execute answers what the plugin says');
	is_deeply([ calls() ],
		[ [ environmentExecute => { %later, lease => $of_lease, command => 'echo', args => [ 'a', 'b c' ], cwd => '/w', env => { K => 'v' }, stdin => 'in', timeoutMs => 2000 } ] ],
		'plugin: what an execute asks');

	# The environment becomes something else; what was made is ended as it was made.
	sql("UPDATE envrt.environments SET driver = 'local', config = '{}' WHERE id = '$environment'");
	is_deeply([ map { $_->{status} } release($node, $run) ], ['released'], 'plugin: released when the environment is another');
	cleaned_up($lease->{id}, 'plugin');
	is_deeply([ calls() ], [ [ environmentReleaseLease => { %later, fence => 2 } ] ], 'plugin: what a release asks, with the config that made it');
}

{
	new_directory();
	my $environment = of_driver(template => 'one');
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment, $run);

	calls();
	sql("UPDATE envrt.environments SET config = jsonb_set(config, '{driverConfig,template}', '\"two\"') WHERE id = '$environment'");
	sql("SELECT * FROM envrt_execute('$lease->{id}', 'true')");
	is((calls())[0][1]{config}{template}, 'one', 'plugin: a command is given the config that made the lease');
	is(sql("SELECT status FROM envrt_destroy_lease('$lease->{id}')"), 'failed', 'plugin: destroy ends it as failed');
	cleaned_up($lease->{id}, 'plugin, destroyed');
	my ($destroy) = calls();
	is($destroy->[0], 'environmentDestroyLease', 'plugin: and asks to destroy');
	is_deeply($destroy->[1]{config}, { directory => $directory, template => 'one' }, 'plugin: with the config that made it');
	is($destroy->[1]{leaseMetadata}{driver}, 'plugin', 'plugin: and the metadata of the lease');
}

# A mode goes along, and leases without an id have nothing to resume.
{
	new_directory(environmentAcquireLease => { providerLeaseId => undef });
	my $environment = of_driver();
	my $run = make_run($node, $company);
	my $lease = row("SELECT * FROM envrt_acquire_lease('$company', '$environment', '$run', execution_workspace_mode => 'shared_workspace')");

	is((calls())[0][1]{workspaceMode}, 'shared_workspace', 'plugin: the mode is told');
	is_deeply($lease->{metadata},
		{ driver => 'plugin', pluginId => $plugin_id, pluginKey => 'envrt.recorder', driverKey => 'recorder-env', executionWorkspaceMode => 'shared_workspace', providerMetadata => {} },
		'plugin: and kept; no metadata is an empty one');
	is_deeply([ @$lease{qw(provider_lease_id expires_at)} ], [ undef, undef ], 'plugin: neither id nor end');
	my ($state, $message) = sql_state($node, "SELECT envrt_resume_lease('$lease->{id}')");
	is($state, '55000', 'plugin: nothing to resume');
	like($message, qr/Plugin environment lease "$lease->{id}" does not have a provider lease id to resume\./, 'plugin: and it says so');
	release($node, $run);
	cleaned_up($lease->{id}, 'plugin, without an id');
	is((calls())[0][1]{providerLeaseId}, undef, 'plugin: a release without an id');
}

# What a resume has to answer, and what becomes of something else
{
	new_directory();
	my $environment = of_driver();
	my $lease = acquire($node, $company, $environment, make_run($node, $company));

	for my $case ([ { providerLeaseId => undef, metadata => {} }, qr/the provider says that it is gone/ ],
		[ { providerLeaseId => $lease->{provider_lease_id}, metadata => { expired => $true } }, qr/the provider says that it has expired/ ],
		[ { metadata => {} }, qr/answered environmentResumeLease with what is no lease/ ],
		[ { providerLeaseId => 'recorder://another', metadata => {} }, qr/the provider resumed another provider lease/ ])
	{
		my ($answer, $pattern) = @$case;

		$recorder->answer(environmentResumeLease => $answer);
		my ($state, $message) = sql_state($node, "SELECT envrt_resume_lease('$lease->{id}')");
		is($state, '38000', "plugin: a resume that answers $pattern: state");
		like($message, $pattern, '... message');
	}
	wait_until_sql($node, "SELECT count(*) = 1 FROM envrt.provider_leases WHERE environment_id = '$environment'", 'what was resumed instead to go', 60);
	is_deeply([ map { $_->[1]{providerLeaseId} } grep { $_->[0] eq 'environmentDestroyLease' } calls() ], ['recorder://another'], 'plugin: it was destroyed, and nothing else');
	$recorder->answer('environmentResumeLease');
	is(from_json(sql("SELECT envrt_resume_lease('$lease->{id}')"))->{providerLeaseId}, $lease->{provider_lease_id}, 'plugin: and the lease can be resumed still');
}

# Whoever may write a lease can give it another company: what is behind it stays its own company's, for each function
# that is told a lease.
{
	my %on_its_row = map { $_ => 1 } qw(envrt_release_lease envrt_renew_lease envrt_await_cleanup envrt_await_lease);
	my $other = make_company($node);

	new_directory();
	my $environment = of_driver();
	my $lease = acquire($node, $company, $environment, make_run($node, $company))->{id};
	my %call = (
		envrt_resume_lease => '', envrt_destroy_lease => '', envrt_realize_workspace => '', envrt_execute => ", 'true'", envrt_execute_raw => ", 'true'",
		envrt_start_execution => ", 'true'", envrt_push_files => ", '$directory'", envrt_pull_files => ", '$directory'",
		envrt_retry_cleanup => '', envrt_forget_provider_lease => '');
	is_deeply([ split /\n/, sql("SELECT DISTINCT proname FROM pg_proc WHERE proname LIKE 'envrt\\_%' AND proargnames[1] = 'lease_id' AND (proargmodes IS NULL OR proargmodes[1] = 'i') ORDER BY 1") ],
		[ sort keys %call, keys %on_its_row ], 'each function that is told a lease is looked at');
	sql(<<"SQL");
CREATE ROLE other_tenant LOGIN;
GRANT USAGE ON SCHEMA envrt TO other_tenant;
GRANT SELECT ON ALL TABLES IN SCHEMA envrt TO other_tenant;
GRANT pg_read_server_files, pg_write_server_files TO other_tenant;
ALTER TABLE envrt.environment_leases ENABLE ROW LEVEL SECURITY;
CREATE POLICY other_tenant ON envrt.environment_leases TO other_tenant USING (company_id = '$other');
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO other_tenant;
UPDATE envrt.environment_leases SET company_id = '$other' WHERE id = '$lease';
SQL
	calls();
	for my $function (sort keys %call)
	{
		for my $state ('held', 'unresolved')
		{
			sql("UPDATE envrt.provider_leases SET state = '$state' WHERE lease_id = '$lease'");
			my ($got, $message) = sql_state($node, "SELECT $function('$lease'$call{$function})", psql => { extra_params => [ '-U', 'other_tenant' ] });

			if ($function eq 'envrt_start_execution' && $got eq '00000')
			{
				wait_until_sql($node, "SELECT bool_and(state = 'failed') FROM envrt.executions WHERE lease_id = '$lease'", 'the execution to fail', 60);
				$got = sql("SELECT string_agg(DISTINCT sqlstate, ' ') FROM envrt.executions WHERE lease_id = '$lease'");
			}
			# A plugin moves no files.
			is($got, $function =~ /retry|forget/ ? '42704' : $function =~ /files/ ? '0A000' : '42501', "$function by another company ($state)") or diag $message;
		}
	}
	is_deeply([ map { $_->[0] } calls() ], [], 'the plugin was asked nothing');
	is(sql("SELECT l.status, p.state, p.doomed FROM envrt.environment_leases l, envrt.provider_leases p WHERE l.id = '$lease' AND p.lease_id = '$lease'"), 'active|unresolved|f', 'and nothing was done');
	sql("ALTER TABLE envrt.environment_leases DISABLE ROW LEVEL SECURITY; UPDATE envrt.provider_leases SET state = 'held' WHERE lease_id = '$lease'; SELECT envrt_release_lease('$lease')");
	cleaned_up($lease, 'plugin, of another company by then');
}

# After the commit, by the scheduler: the same.
{
	new_directory();
	my $environment = of_driver();
	my $run = make_run($node, $company);
	my $id = sql("SELECT envrt_request_lease('$company', '$environment', '$run')");
	my $lease = row("SELECT * FROM envrt_await_lease('$id')");

	is_deeply([ @{ $lease->{metadata} }{qw(driver pluginId pluginKey driverKey)} ], [ 'plugin', $plugin_id, 'envrt.recorder', 'recorder-env' ], 'plugin: a requested lease');
	is($lease->{metadata}{providerMetadata}{driver}, 'forged', 'plugin: and what the plugin said');
	is_deeply((calls())[0][1]{config}, { directory => $directory }, 'plugin: asked the same way');
	release($node, $run);
	cleaned_up($id, 'plugin, requested');
}

#######################################################################
# Sandboxes
#######################################################################
{
	new_directory();
	my %config = (provider => 'recorder', directory => $directory, image => 'template-a', timeoutMs => 450000, reuseLease => $false);
	my $environment = sandbox(%config);
	my $run = make_run($node, $company);
	my $lease = acquire($node, $company, $environment, $run);
	my %base = (driverKey => 'recorder', companyId => $company, environmentId => $environment, config => {%config});
	my %added = (leaseId => $lease->{id}, fence => 1);
	my $metadata = {
		%config, remoteCwd => '/workspace', nested => { list => [ 1, 'two', undef ] }, driverKey => 'forged',
		driver => 'sandbox', executionWorkspaceMode => undef, pluginId => $plugin_id, pluginKey => 'envrt.recorder', sandboxProviderPlugin => $true
	};

	is_deeply([ calls() ], [ [ environmentAcquireLease => { %base, %added, runId => $run } ] ], 'sandbox: what an acquire asks');
	is_deeply($lease->{metadata}, $metadata, 'sandbox: config and metadata side by side, and what is ours can\'t be overridden');
	is_deeply([ @$lease{qw(provider lease_policy)} ], [ 'recorder', 'ephemeral' ], 'sandbox: provider and policy');
	my %later = (%base, %added, providerLeaseId => $lease->{provider_lease_id}, leaseMetadata => $metadata);
	is(row("SELECT * FROM envrt_execute('$lease->{id}', 'true')")->{stdout}, "ok\n", 'sandbox: execute answers what the plugin says');
	is_deeply((calls())[0][1]{config}, {%config}, 'sandbox: a command is given exactly the sandbox\'s config');
	sql("UPDATE envrt.environments SET driver = 'ssh', config = '{}' WHERE id = '$environment'");
	release($node, $run);
	cleaned_up($lease->{id}, 'sandbox');
	is_deeply([ calls() ], [ [ environmentReleaseLease => { %later, fence => 2 } ] ], 'sandbox: a release is given exactly the sandbox\'s config');
}

# What can be reused is resumed.
{
	new_directory(environmentAcquireLease => { providerLeaseId => 'recorder://forger', metadata => { resumedLease => $true, leasePolicy => 'forged' } });
	my $environment = sandbox(reuseLease => $true);
	my $run = make_run($node, $company);
	my $first = acquire($node, $company, $environment, $run);

	release($node, $run);
	cleaned_up($first->{id}, 'sandbox, reusable');
	is_deeply([ @{ $first->{metadata} }{qw(resumedLease leasePolicy)} ], [ undef, undef ], 'sandbox: which its plugin can\'t say of a new one, nor a lease policy');
	$run = make_run($node, $company);
	my $second = acquire($node, $company, $environment, $run);
	is($second->{provider_lease_id}, $first->{provider_lease_id}, 'sandbox: the same provider lease again');
	is_deeply([ map { $_->[0] } calls() ], [qw(environmentAcquireLease environmentReleaseLease environmentResumeLease)], 'sandbox: which was resumed');
	is_deeply([ @{ $second->{metadata} }{qw(driver pluginKey resumedLease)} ], [ 'sandbox', 'envrt.recorder', $true ], 'sandbox: and its lease says so');
	sql("SELECT envrt_destroy_lease('$second->{id}')");
	cleaned_up($second->{id}, 'sandbox, destroyed');
	is_deeply([ map { $_->[0] } calls() ], ['environmentDestroyLease'], 'sandbox: destroyed, not kept');
}

#######################################################################
# What goes wrong
#######################################################################

sub refused
{
	my ($environment, $state, $pattern, $what, $rows) = @_;
	my $run = make_run($node, $company);
	my ($got, $message) = sql_state($node, "SELECT envrt_acquire_lease('$company', '$environment', '$run')");

	is($got, $state, "$what: state");
	like($message, $pattern, "$what: message");
	like($message, qr/HINT:  Plugins are installed in envrt\.plugin_path/, "$what: hint") if $state eq '42704';
	is(sql("SELECT count(*) FROM envrt.provider_leases WHERE environment_id = '$environment'"), $rows // 0, "$what: nothing is left in the ledger");
	return;
}

new_directory();
refused(make_environment($node, $company, 'plugin', { pluginKey => 'no.such', driverKey => 'd' }),
	'42704', qr/Plugin environment driver "no\.such:d" is not ready\./, 'no such plugin');
refused(make_environment($node, $company, 'plugin', { pluginKey => 'envrt.recorder', driverKey => 'none' }),
	'42704', qr/Plugin "envrt\.recorder" does not declare environment driver "none"\./, 'no such driver');
refused(make_environment($node, $company, 'sandbox', { provider => 'nobody' }),
	'42704', qr/Sandbox provider "nobody" is not registered as a built-in provider and no matching plugin is available\./, 'no such provider');
refused(make_environment($node, $company, 'plugin', { driverKey => 'd' }), '22023', qr/pluginKey: Required/, 'no key');
$recorder->answer(environmentAcquireLease => { error => { code => -32002, message => 'No capacity' } });
refused(of_driver(), '38000', qr/No capacity/, 'the plugin\'s own error');

# A thousand failures in one session cost nothing but errors.
{
	new_directory();
	my $lease = acquire($node, $company, of_driver(), make_run($node, $company));
	my $session = EnvrtSession->new($node);
	my $fail = sub {
		my ($times) = @_;
		my $result = $session->run(<<"SQL");
DO \$\$
BEGIN
    FOR i IN 1..$times LOOP
        BEGIN
            PERFORM envrt_execute('$lease->{id}', 'true');
            RAISE 'no error';
        EXCEPTION WHEN external_routine_exception THEN
            NULL;
        END;
    END LOOP;
END \$\$
SQL
		die $result->{message} if $result->{state} ne '00000';
		# Resident memory of the session and of the driver host, in kB
		return map { slurp("/proc/$_/status") =~ /^VmRSS:\s+(\d+)/m ? $1 : die } $session->backend, EnvrtProvider::driver_host_pid($node);
	};

	$recorder->answer(environmentExecute => { error => { code => -32002, message => 'Out of order: ' . 'x' x 2000 } });
	my @before = $fail->(200);
	my @after = $fail->(1000);
	cmp_ok($after[0] - $before[0], '<', 512, 'a thousand failing commands: the session\'s memory stays') or diag "@before, @after";
	cmp_ok($after[1] - $before[1], '<', 2048, 'and the driver host\'s') or diag "@before, @after";
	is(scalar(() = $recorder->calls), 1201, 'each was asked of the plugin');
	$recorder->answer('environmentExecute');
	is($session->run("SELECT stdout FROM envrt_execute('$lease->{id}', 'true')")->{out}, "ok\n", 'and then the next one works');
}

# A worker that ends again and again is held back, and who can't wait is told so.
{
	new_directory();
	my $environment = of_driver();
	my $lease = acquire($node, $company, $environment, make_run($node, $company));

	$node->append_conf('postgresql.conf', "envrt.provider_timeout = '500ms'");
	$node->reload;
	wait_until('the setting', sub { sql('SHOW envrt.provider_timeout') eq '500ms' });
	sql("SELECT envrt_restart_plugin('envrt.recorder')");
	like((sql_state($node, "SELECT envrt_execute('$lease->{id}', 'die')"))[1], qr/worker ended during the call/, 'a worker that ends') for 1 .. 2;
	refused($environment, '38000', qr/Plugin environment driver "envrt\.recorder:recorder-env" has no running worker\./, 'no worker', 1);
	sql("SELECT envrt_restart_plugin('envrt.recorder')");
	$node->append_conf('postgresql.conf', "envrt.provider_timeout = '60s'");
	$node->reload;
	is(sql("SELECT stdout FROM envrt_execute('$lease->{id}', 'true')"), "ok\n", 'a person can have it started');
}

# Another plugin with the same provider, and a copy of a plugin.
{
	my $more = temporary_directory() . '/a-plugins';

	system('sh', '-ec', 'mkdir "$1"; cp -R "$2" "$1/other"; cp -R "$2" "$1/copy"; sed -i s/envrt.recorder/envrt.a-recorder/ "$1/other/manifest.json"', '-', $more, "$FindBin::RealBin/../plugins/recorder") == 0 or die;
	my $two = new_cluster('two', conf => "envrt.plugin_path = '$more, $FindBin::RealBin/../plugins'\n");
	my $company = make_company($two);
	my $directory = EnvrtRecorder->new($two, $company)->{directory};

	is($two->safe_psql('postgres', "SELECT string_agg(plugin_key || ' ' || status, ', ' ORDER BY plugin_key COLLATE \"C\") FROM envrt_reload_plugins() WHERE plugin_key LIKE '%recorder'"),
		'envrt.a-recorder ready, envrt.recorder ready', 'a second folder with the same key does not spoil the first');
	for my $used (qw(envrt.recorder envrt.a-recorder))
	{
		my $environment = make_environment($two, $company, 'sandbox', { provider => 'recorder', directory => $directory, deadly => 'environmentAcquireLease' });

		$two->safe_psql('postgres', "UPDATE envrt.plugins SET status = CASE plugin_key WHEN '$used' THEN 'ready' ELSE 'disabled' END");
		is((sql_state($two, "SELECT envrt_acquire_lease('$company', '$environment', '" . make_run($two, $company) . "')"))[0], '38000', "$used ends while it makes something");
		is($two->safe_psql('postgres', "SELECT plugin_key FROM envrt.provider_leases WHERE environment_id = '$environment'"), $used, 'the ledger knows that it was this plugin');
		my $requested = $two->safe_psql('postgres', "SELECT envrt_request_lease('$company', '$environment', '" . make_run($two, $company) . "')");
		is((sql_state($two, "SELECT envrt_await_lease('$requested')"))[0], '38000', "$used ends while it makes what was requested");
		is($two->safe_psql('postgres', "SELECT string_agg(DISTINCT coalesce(plugin_key, 'nobody'), ' ') FROM envrt.provider_leases WHERE environment_id = '$environment'"), $used, 'the ledger knows here too');
	}

	# A manifest that takes long holds up nobody whose plugin is known.
	SKIP:
	{
		skip 'there is no node', 3 if system('node --version >/dev/null 2>&1') != 0;
		my $environment = make_environment($two, $company, 'sandbox', { provider => 'recorder', directory => $directory });
		my $reader = EnvrtSession->new($two);

		mkdir "$more/slow" or die;
		spew("$more/slow/package.json", to_json({ paperclipPlugin => { manifest => 'manifest.js', worker => 'worker.js' }, type => 'module' }));
		spew("$more/slow/manifest.js", 'await new Promise((r) => setTimeout(r, 60000));');
		$reader->start('SELECT envrt_reload_plugins()');
		wait_until('the plugins to be read', sub { $two->safe_psql('postgres', "SELECT count(*) FROM envrt.stat_calls WHERE method = 'envrt/reloadPlugins'") });
		my $start = time;
		is($two->safe_psql('postgres', "SELECT status FROM envrt_acquire_lease('$company', '$environment', '" . make_run($two, $company) . "')"), 'active', 'a lease while a manifest is read that takes long');
		cmp_ok(time - $start, '<', 5, 'it did not take long');
		is($reader->finish->{state}, '00000', 'who has them read waits until they are');
	}
	$two->stop;
}

# Who has the table of plugins locked holds up those who want a plugin, and not the scheduler.
{
	new_directory();
	my ($environment, $run) = (of_driver(), make_run($node, $company));
	my $held = acquire($node, $company, $environment, $run);
	my $locker = EnvrtSession->new($node);

	$locker->run($_) for 'BEGIN', 'LOCK envrt.plugins IN ACCESS EXCLUSIVE MODE';
	my $waiting = sql("SELECT envrt_request_lease('$company', '$environment', '" . make_run($node, $company) . "')");
	release($node, $run);
	cleaned_up($held->{id}, 'while plugins are locked');
	my $other = sql("SELECT envrt_request_lease('$company', '" . make_fake_environment($node, $company) . "', '" . make_run($node, $company) . "')");
	is(sql("SELECT status FROM envrt_await_lease('$other')"), 'active', 'a request for something else is met');
	is(sql("SELECT state FROM envrt.lease_requests WHERE lease_id = '$waiting'"), 'queued', 'one that needs a plugin waits');
	is((sql_state($node, "SET statement_timeout = '200ms'; SELECT envrt_acquire_lease('$company', '$environment', '" . make_run($node, $company) . "')"))[0], '57014', 'an acquire waits, and can be cancelled');
	$locker->run('ROLLBACK');
	is(sql("SELECT status FROM envrt_await_lease('$waiting')"), 'active', 'and is met in the end');
}

# A row decides whether a plugin can be used in this database.
new_directory();
my $by_driver = of_driver();
my $by_provider = sandbox();
my $run = make_run($node, $company);
my $held = acquire($node, $company, of_driver(), $run);
for my $status (qw(disabled error installed uninstalled upgrade_pending))
{
	sql("INSERT INTO envrt.plugins (plugin_key, package_name, version, manifest_json, status) VALUES ('envrt.recorder', 'x', '1', '{}', '$status')"
		. " ON CONFLICT (plugin_key) DO UPDATE SET status = EXCLUDED.status");
	refused($by_driver, '55000', qr/Plugin environment driver "envrt\.recorder:recorder-env" is not ready\./, "plugin $status");
	refused($by_provider, '42704', qr/Sandbox provider "recorder" is not registered as a built-in provider and no matching plugin is available\./, "provider $status");
	is((sql_state($node, "SELECT envrt_execute('$held->{id}', 'true')"))[0], '55000', "a command in a lease of a plugin that is $status");
	is((sql_state($node, "SELECT envrt_resume_lease('$held->{id}')"))[0], '55000', "a resume by a plugin that is $status");
	my $requested = sql("SELECT envrt_request_lease('$company', '$by_provider', '" . make_run($node, $company) . "')");
	is((sql_state($node, "SELECT envrt_await_lease('$requested')"))[0], '42704', "a requested lease of a plugin that is $status");
}
calls();
release($node, $run);
cleaned_up($held->{id}, 'a plugin that can\'t be used any more cleans up');
is_deeply([ map { $_->[0] } calls() ], ['environmentReleaseLease'], 'and nothing else was asked of it');
sql("UPDATE envrt.plugins SET status = 'ready'");
my $lease = acquire($node, $company, $by_driver, make_run($node, $company));
is($lease->{metadata}{pluginId}, sql("SELECT id FROM envrt.plugins WHERE plugin_key = 'envrt.recorder'"), 'the id in the metadata is that of the plugin\'s row');

done_testing();
