# Plugins written for the published SDK (test/sdk, compiled with two of its versions): everything that an
# environment does, through SQL, by both roads; what survives the worker; fifty commands at once.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtTest;
use EnvrtFixture qw(processes_below slurp);
use EnvrtProvider;
use EnvrtSdk;
use EnvrtSession;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my ($node, $company, $provider);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub row
{
	return from_json(sql("SELECT to_jsonb(r) FROM ($_[0]) r"));
}

sub create
{
	my ($driver, $config) = @_;

	return row('SELECT id, config FROM envrt_create_environment(' . join(', ', map { literal($_) } $company, 'SDK', $driver, to_json($config)) . ')');
}

# The result as a Perl hash; named arguments of the function as SQL.
sub execute
{
	my ($lease, $command, %arguments) = @_;
	my $more = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;

	return row("SELECT * FROM envrt_execute('$lease->{id}', " . literal($command) . "$more)");
}

sub sh
{
	my ($lease, $script, %arguments) = @_;

	return execute($lease, 'sh', args => "ARRAY['-c', " . literal($script) . ']', %arguments);
}

sub worker
{
	return sql("SELECT pid FROM envrt_plugins() WHERE plugin_key = 'envrt.tempdir'");
}

sub kill_worker
{
	my ($by_itself) = @_;
	my $pid = worker();
	my $state;

	kill 'KILL', $pid or die "no worker $pid";
	wait_until('the worker to be known to have ended',
		sub {
			($state, my $now) = split /\|/, sql("SELECT state, coalesce(pid, 0) FROM envrt_plugins() WHERE plugin_key = 'envrt.tempdir'");
			$now != $pid && $state =~ /^(idle|waiting|starting|running)$/;
		});
	# One that ends again and again is held back, until a person says otherwise.
	sql("SELECT envrt_restart_plugin('envrt.tempdir')") if !$by_itself;
	return;
}

for my $version (@EnvrtSdk::versions)
{
	note "SDK $version";
	my $name = "sdk$version" =~ s/\./_/gr;
	$node = new_cluster($name, conf => 'envrt.plugin_path = ' . literal(EnvrtSdk::plugins($version)) . "\nmax_connections = 80\n");
	$company = make_company($node);
	$provider = EnvrtProvider->new;
	my $directory = $provider->{directory};

	is(sql("SELECT string_agg(plugin_key || ' ' || status, ', ' ORDER BY plugin_key) FROM envrt_reload_plugins()"), 'envrt.tempdir ready, envrt.tempdir-keyed ready', "$version: the plugins");

	for my $road (qw(sandbox plugin))
	{
		my $is_sandbox = $road eq 'sandbox';
		my $what = "$version, $road";
		my $given = sub {
			my (%config) = @_;

			return $is_sandbox ? { provider => 'tempdir', directory => $directory, %config } : { pluginKey => 'envrt.tempdir', driverKey => 'tempdir-machine', driverConfig => { directory => $directory, %config } };
		};
		my ($state, $message) = sql_state($node, 'SELECT envrt_create_environment(' . join(', ', map { literal($_) } $company, 'x', $road, to_json($given->(directory => 'x'))) . ')');
		is($state, '22023', "$what: the plugin refuses a config");
		like($message, qr/directory must be an absolute path/, "$what: and says why");
		my $environment = create($road, $given->(directory => "$directory/../provider"));
		is(($is_sandbox ? $environment->{config} : $environment->{config}{driverConfig})->{directory}, $directory, "$what: it is stored as the plugin normalizes it");
		my $probe = row("SELECT * FROM envrt_probe('$environment->{id}')");
		is_deeply([ @$probe{qw(ok driver summary)} ], [ $true, $road, "Sandboxes are below $directory." ], "$what: probe");
		is($probe->{details}{pluginKey}, 'envrt.tempdir', "$what: of the plugin");

		my $run = make_run($node, $company);
		my $lease = acquire($node, $company, $environment->{id}, $run);
		my $metadata = $is_sandbox ? $lease->{metadata} : $lease->{metadata}{providerMetadata};
		my $home = $metadata->{remoteCwd};
		ok(-d $home, "$what: acquire");
		is_deeply([ @{ $lease->{metadata} }{qw(driver pluginKey)} ], [ $road, 'envrt.tempdir' ], "$what: whose it is");
		is($lease->{metadata}{pluginId}, sql("SELECT id FROM envrt.plugins WHERE plugin_key = 'envrt.tempdir'"), "$what: by the plugin's row");
		is_deeply(from_json(sql("SELECT envrt_realize_workspace('$lease->{id}', '{\"localPath\": \"/l\", \"mode\": \"m\"}')")),
			{ cwd => "$home/workspace", metadata => { localPath => '/l', mode => 'm' } }, "$what: realize");
		my $result = sh($lease, 'read -r line; printf "%s|%s|%s" "$line" "$A" "$PWD"; echo e >&2; exit 3',
			cwd => "'workspace'", env => q('{"A": "b c"}'), stdin => "E'a line\\nmore'");
		is_deeply([ @$result{qw(exit_code signal timed_out stdout stderr)} ], [ 3, undef, $false, "a line|b c|$home/workspace", "e\n" ], "$what: execute, with stdin, env and cwd");
		my $start = time;
		$result = sh($lease, 'echo began; trap "" TERM; sleep 30 & wait', timeout => "'300 ms'");
		is_deeply([ @$result{qw(exit_code timed_out stdout)} ], [ undef, $true, "began\n" ], "$what: execute, whose time is over");
		cmp_ok(time - $start, '<', 10, "$what: in time");
		is(row("SELECT encode(stdout, 'escape') AS out FROM envrt_execute_raw('$lease->{id}', 'cat', stdin => 'bytes\\012')")->{out}, "bytes\n", "$what: execute_raw, of what is text");
		is((sql_state($node, "SELECT envrt_execute_raw('$lease->{id}', 'cat', stdin => '\\xff')"))[0], '22023', "$what: and not of what is none");
		($state, $message) = sql_state($node, "SELECT envrt_execute('$lease->{id}', '/no/such/bin')");
		is($state, '38000', "$what: what is not there");
		like($message, qr{spawn /no/such/bin ENOENT}, "$what: and it says so");
		is(from_json(sql("SELECT envrt_resume_lease('$lease->{id}')"))->{providerLeaseId}, $lease->{provider_lease_id}, "$what: resume");

		# What the worker has made outlives it.
		kill_worker(1);
		is(sh($lease, 'printf there')->{stdout}, 'there', "$what: a command after the worker was killed");
		my $session = EnvrtSession->new($node);
		my $running = "$directory/running-$road";
		$session->start("SELECT envrt_execute('$lease->{id}', 'sh', ARRAY['-c', 'touch $running; sleep 60'])");
		wait_until('the command to run', sub { -e $running });
		kill_worker();
		is($session->finish->{state}, '38000', "$what: a command whose worker is killed");
		is(sh($lease, 'printf there')->{stdout}, 'there', "$what: and the next one");
		kill_worker();
		is(from_json(sql("SELECT envrt_realize_workspace('$lease->{id}')"))->{cwd}, "$home/workspace", "$what: realize after the worker was killed");
		kill_worker();
		is_deeply([ map { $_->{status} } release($node, $run) ], ['released'], "$what: release after the worker was killed");
		is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', "$what: cleanup_status");
		ok(!-e $home, "$what: it is gone");

		$lease = acquire($node, $company, $environment->{id}, make_run($node, $company));
		is(sql("SELECT status FROM envrt_destroy_lease('$lease->{id}')"), 'failed', "$what: destroy");
		is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', "$what: cleanup_status of what is destroyed");
	}

	# Reuse
	{
		my $environment = create('sandbox', { provider => 'tempdir', directory => $directory, reuseLease => $true });
		my $run = make_run($node, $company);
		my $first = acquire($node, $company, $environment->{id}, $run);
		sh($first, 'echo kept > file');
		release($node, $run);
		is(sql("SELECT envrt_await_cleanup('$first->{id}')"), 'success', "$version, reuse: released");
		kill_worker();
		my $second = acquire($node, $company, $environment->{id}, make_run($node, $company));
		is_deeply([ @$second{qw(provider_lease_id lease_policy)} ], [ $first->{provider_lease_id}, 'reuse_by_environment' ], "$version, reuse: resumed, by another worker");
		ok($second->{metadata}{resumedLease}, "$version, reuse: and its lease says so");
		is(sh($second, 'cat file')->{stdout}, "kept\n", "$version, reuse: what was in it is there");
		sql("SELECT envrt_destroy_lease('$second->{id}')");
		is(sql("SELECT envrt_await_cleanup('$second->{id}')"), 'success', "$version, reuse: destroyed");
	}

	# Secrets, as the SDK's plugins ask for them
	{
		my $secret = sql("SELECT envrt_create_secret('$company', 'key of $version', 'the-secret-key')");
		my $environment = create('sandbox', { provider => 'tempdir', directory => $directory, apiKey => $secret });
		is($environment->{config}{apiKey}, $secret, "$version, secrets: the id of a secret");
		my $run = make_run($node, $company);
		my $lease = acquire($node, $company, $environment->{id}, $run);
		is($lease->{metadata}{secretLength}, length 'the-secret-key', "$version, secrets: the worker has asked for it");
		release($node, $run);
		is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', "$version, secrets: released");
		unlike(EnvrtFixture::slurp($node->logfile), qr/the key is the-secret-key/, "$version, secrets: what the worker logs is masked");
		like(EnvrtFixture::slurp($node->logfile), qr/envrt\.tempdir.*the key is \*+/, "$version, secrets: and logged");
	}

	# Fifty at once in one worker
	{
		my $environment = create('sandbox', { provider => 'tempdir', directory => $directory });
		my $run = make_run($node, $company);
		my $lease = acquire($node, $company, $environment->{id}, $run);
		my @sessions = map { EnvrtSession->new($node) } 1 .. 50;
		my $pid = worker();
		my $start = time;

		$sessions[ $_ - 1 ]->start("SELECT stdout FROM envrt_execute('$lease->{id}', 'sh', ARRAY['-c', 'sleep 2; printf $_'])") for 1 .. 50;
		wait_until('fifty calls in flight', sub { sql("SELECT count(*) FROM envrt.stat_calls WHERE method = 'environmentExecute'") == 50 });
		is(join(' ', map { $_->finish->{out} } @sessions), join(' ', 1 .. 50), "$version: fifty commands at once, each to its caller");
		my $took = time - $start;
		note sprintf 'fifty commands of 2 s: %.1f s', $took;
		cmp_ok($took, '<', 50, "$version: not one after the other");
		is(worker(), $pid, "$version: in one worker");
		release($node, $run);
		is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', "$version: released");
	}

	# A thousand acquires that fail, in one session
	{
		my $environment = create('sandbox', { provider => 'tempdir', directory => $directory });
		my $run = make_run($node, $company);
		my $session = EnvrtSession->new($node);
		my $pid = worker();
		my $fail = sub {
			my ($times) = @_;
			my $result = $session->run(<<"SQL");
DO \$\$
DECLARE
    seen integer := 0;
    message text;
    detail text;
BEGIN
    FOR i IN 1..$times LOOP
        BEGIN
            PERFORM envrt_acquire_lease('$company', '$environment->{id}', '$run');
        EXCEPTION WHEN external_routine_exception THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
            seen := seen + (message = 'The knob acquire-fail is set' AND detail LIKE '%failing to acquire, as told')::integer;
        END;
    END LOOP;
    IF seen <> $times THEN
        RAISE '% of $times: % %', seen, message, detail;
    END IF;
END \$\$
SQL
			is("$result->{state} $result->{message}", '00000 ', "$version: $times acquires fail, each with what the worker wrote to stderr");
			# Resident memory of the session and of the driver host, in kB
			return map { EnvrtFixture::slurp("/proc/$_/status") =~ /^VmRSS:\s+(\d+)/m ? $1 : die } $session->backend, EnvrtProvider::driver_host_pid($node);
		};

		$provider->set_knob('acquire-fail', 'always');
		my @before = $fail->(200);
		my @after = $fail->(1000);
		$provider->clear_knobs;
		cmp_ok($after[0] - $before[0], '<', 1024, "$version: the session's memory stays") or diag "@before, @after";
		cmp_ok($after[1] - $before[1], '<', 4096, "$version: and the driver host's") or diag "@before, @after";
		is(worker(), $pid, "$version: and the worker is the same");
		is(sql("SELECT count(*) FROM envrt.provider_leases WHERE environment_id = '$environment->{id}'"), '0', "$version: nothing is left in the ledger");
		acquire($node, $company, $environment->{id}, $run);
		release($node, $run);
	}

	is_deeply([ $provider->settled($node, cleaned => 1) ], [], "$version: nothing is leaked, lost or held twice");
	is_deeply([ $provider->sandboxes ], [], "$version: and nothing exists");
	my $stats = row("SELECT * FROM envrt.stat_plugins WHERE plugin_key = 'envrt.tempdir'");
	is_deeply([ @$stats{qw(status installed state active_calls)} ], [ 'ready', $true, 'running', 0 ], "$version: the plugin in the view");
	cmp_ok($stats->{failed_calls}, '>', 0, "$version: with what has failed");
	cmp_ok($stats->{restarts}, '>', 0, "$version: and its restarts");
	my $last = worker();
	$node->stop;
	is(slurp("$provider->{directory}/shutdown"), "$last\n", "$version: at the server's end the plugin is told");
}

done_testing();
