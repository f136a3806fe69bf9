# Nothing that SQL can do starts a program that is not in envrt.plugin_path: not by rows of plugins with
# paths and manifests, not by keys that look like paths, not by configs that name programs, not by
# settings.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtFixture qw(spew processes_below);
use EnvrtProvider;
use EnvrtRecorder;

# A folder that is a plugin in everything but its place, beside one that is in the path.
my $outside = temporary_directory() . '/outside';
my $marks = temporary_directory() . '/marks';
my $inside = temporary_directory() . '/inside';
mkdir $_ or die "$_: $!" for $outside, "$outside/evil", $marks, $inside;
spew("$outside/evil/worker", qq{#!/bin/sh\ntouch $marks/\$\$\nexec cat\n});
chmod 0755, "$outside/evil/worker";
my $manifest = to_json({
		id => 'evil', apiVersion => 1, version => '1.0.0', displayName => 'Evil', capabilities => ['environment.drivers.register'],
		entrypoints => { worker => 'worker' },
		environmentDrivers => [ { driverKey => 'evil', kind => 'sandbox_provider' }, { driverKey => 'evil-env', kind => 'environment_driver' } ]
	});
spew("$outside/evil/manifest.json", $manifest);
system('cp', '-R', "$FindBin::RealBin/../plugins/recorder", "$inside/recorder") == 0 or die;

my $node = new_cluster('programs', conf => "envrt.plugin_path = '$inside'\nenvrt.provider_timeout = '2s'\n");
my $company = make_company($node);
my $recorder = EnvrtRecorder->new($node, $company);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# Whatever it says, as long as it says something.
sub try_sql
{
	return (sql_state($node, $_[0]))[0];
}

# The plugin's rows and what users put into them
for my $key ('evil', '../outside/evil', "$outside/evil", "$outside/evil/worker", 'recorder/../../outside/evil', '.', '..', '', 'envrt.recorder/../evil', "evil\n", '*')
{
	my $literal = literal($key);

	sql("INSERT INTO envrt.plugins (plugin_key, package_name, package_path, version, manifest_json, status) VALUES ($literal, $literal, '$outside/evil', '1.0.0', "
		  . literal(to_json({ %{ from_json($manifest) }, id => $key, entrypoints => { worker => "$outside/evil/worker" } })) . ", 'ready')");
	for my $driver (qw(evil evil-env recorder recorder-env))
	{
		my $config = { pluginKey => $key, driverKey => $driver, driverConfig => { directory => $recorder->{directory} } };

		isnt(try_sql('SELECT envrt_create_environment(' . join(', ', map { literal($_) } $company, 'x', 'plugin', to_json($config)) . ')'), '00000', "no environment: $key, $driver");
		isnt(try_sql("SELECT envrt_acquire_lease('$company', '" . make_environment($node, $company, 'plugin', $config) . "', '" . make_run($node, $company) . "')"),
			'00000', "no lease: $key, $driver")
		  if $driver eq 'evil' || $driver eq 'recorder-env';
	}
	isnt(try_sql("SELECT envrt_restart_plugin($literal)"), '00000', "no restart: $key");
}
for my $provider ('evil', '../outside/evil', "$outside/evil/worker", 'recorder/../../outside/evil')
{
	my $config = to_json({ provider => $provider, directory => $recorder->{directory} });

	isnt(try_sql('SELECT envrt_create_environment(' . join(', ', map { literal($_) } $company, 'x', 'sandbox', $config) . ')'), '00000', "no sandbox: $provider");
	like(sql('SELECT ok FROM envrt_probe_config(' . join(', ', literal($company), "'sandbox'", literal($config)) . ')'), qr/^f$/, "no probe: $provider")
	  if $provider eq 'evil';
}

# Configs that name programs are configs
my %programs = map { $_ => "$outside/evil/worker" } qw(worker command program path pluginPath entrypoint node execPath shellCommand package_path);
my $run = make_run($node, $company);
for my $environment ($recorder->sandbox(%programs, entrypoints => { worker => "$outside/evil/worker" }, pluginKey => 'evil', env => { PATH => $outside, NODE_PATH => $outside, LD_PRELOAD => "$outside/x.so" }),
	$recorder->of_driver(%programs, env => { NODE_OPTIONS => "--require $outside/evil/worker" }))
{
	my $lease = acquire($node, $company, $environment, $run);

	is(sql("SELECT stdout FROM envrt_execute('$lease->{id}', '$outside/evil/worker', env => '{\"PATH\": \"$outside\"}')"), "ok\n", 'a command is for the plugin to run');
	is($lease->{metadata}{pluginKey}, 'envrt.recorder', 'a lease of the plugin that is there');
}

# Settings and functions
sql('CREATE ROLE app LOGIN');
sql('GRANT EXECUTE ON FUNCTION envrt_reload_plugins(), envrt_restart_plugin(text) TO app');
sql('GRANT USAGE ON SCHEMA envrt TO app');
sql('GRANT ALL ON ALL TABLES IN SCHEMA envrt TO app');
isnt(try_sql("SET ROLE app; SET envrt.plugin_path = '$outside'"), '00000', 'the path is not for a session to set');
isnt(try_sql("SET ROLE app; ALTER ROLE app SET envrt.plugin_path = '$outside'"), '00000', 'nor for a role');
isnt(try_sql("SET ROLE app; ALTER SYSTEM SET envrt.plugin_path = '$outside'"), '00000', 'nor for the server, by who is no superuser');
is(try_sql("SET ROLE app; UPDATE envrt.plugins SET package_path = '$outside/evil', status = 'ready'; SELECT envrt_reload_plugins()"), '00000', 'reading the folders again');
is(sql("SELECT string_agg(plugin_key, ' ') FROM envrt_plugins()"), 'envrt.recorder', 'finds what the administrator put there');
is(sql("SELECT string_agg(plugin_key, ' ') FROM envrt.plugins WHERE status = 'ready'"), 'envrt.recorder', 'and nothing else is ready');

my ($host) = EnvrtProvider::driver_host_pid($node);
my @programs = map { readlink("/proc/$_/exe") // '' } processes_below($host);
ok(@programs > 0, 'there is a worker');
is_deeply([ grep { !m{/(?:perl|envrt_driver_host)} } @programs ], [], 'nothing but the plugin\'s worker runs below the driver host');
is_deeply([ glob "$marks/*" ], [], 'and nothing from elsewhere has run');

# What that test would have seen: the administrator can install it.  (A link that leads out of the path is not enough.)
symlink "$outside/evil", "$inside/evil" or die $!;
sql('SELECT envrt_reload_plugins()');
is(try_sql("SELECT * FROM envrt_create_environment('$company', 'x', 'sandbox', '{\"provider\": \"evil\"}')"), '42704', 'a link out of the path is no plugin');
is_deeply([ glob "$marks/*" ], [], 'and is not run');
unlink "$inside/evil" or die $!;
system('cp', '-R', "$outside/evil", "$inside/evil") == 0 or die;
sql('SELECT envrt_reload_plugins()');
try_sql("SELECT * FROM envrt_probe_config('$company', 'sandbox', '{\"provider\": \"evil\"}')");
ok(wait_until('the mark', sub { () = glob "$marks/*" }), 'what is in the path does run');

done_testing();
