# Configs of environments that a plugin makes: the plugin validates them, its configSchema says which
# fields are secrets, secrets are stored as such and resolved on the way to the plugin, and probes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;
use EnvrtFixture qw(slurp);
use EnvrtProvider;
use EnvrtRecorder;

my $node = new_cluster('configs', conf => EnvrtProvider::conf());
my $company = make_company($node);
my $other_company = make_company($node);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $recorder = EnvrtRecorder->new($node, $company);
my $directory = $recorder->{directory};

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub row
{
	return from_json(sql("SELECT to_jsonb(r) FROM ($_[0]) r"));
}

my $serial = 0;

sub create_statement
{
	my ($driver, $config, $name) = @_;

	return 'SELECT id, config FROM envrt_create_environment('
	  . join(', ', map { literal($_) } $company, $name // 'Environment ' . ++$serial, $driver, to_json($config)) . ')';
}

sub create
{
	return row(create_statement(@_));
}

sub refused
{
	my ($statement, $state, $pattern, $what) = @_;
	my ($got, $message) = sql_state($node, $statement);

	is($got, $state, "$what: state");
	like($message, $pattern, "$what: message");
	return $message;
}

# What a command of the plugin's gets as a config.
sub config_in_lease
{
	my ($environment) = @_;
	my $run = make_run($node, $company);

	$recorder->calls;
	acquire($node, $company, $environment, $run);
	release($node, $run);
	return (grep { $_->[0] eq 'environmentAcquireLease' } $recorder->calls)[0][1]{config};
}

sub secret_of
{
	my ($reference) = @_;

	return row("SELECT name, description, company_id FROM envrt.company_secrets WHERE id = '$reference->{secretId}'");
}

sub count_secrets
{
	return sql('SELECT count(*) FROM envrt.company_secrets');
}

#######################################################################
# Validation
#######################################################################

my $environment = create('plugin', $recorder->driver_config(template => 'base', number => 1.5));
is_deeply([ $recorder->calls ], [ [ environmentValidateConfig => { driverKey => 'recorder-env', config => { directory => $directory, template => 'base', number => 1.5 } } ] ],
	'plugin: what a validation asks');
is_deeply($environment->{config}, $recorder->driver_config(template => 'base', number => 1.5), 'plugin: stored as given, when the plugin has nothing to say');
$environment = create('sandbox', $recorder->sandbox_config(timeoutMs => '450000', image => ' x '));
is_deeply([ $recorder->calls ], [ [ environmentValidateConfig => { driverKey => 'recorder', config => $recorder->sandbox_config(timeoutMs => 450000, image => ' x ', reuseLease => $false) } ] ],
	'sandbox: what a validation asks');
is_deeply($environment->{config}, $recorder->sandbox_config(timeoutMs => 450000, image => ' x ', reuseLease => $false), 'sandbox: stored in canonical shape');
is(sql('SELECT config FROM envrt_create_environment(' . join(', ', map { literal($_) } $company, 'n', 'sandbox', qq({"provider": "recorder", "directory": "$directory", "n": 1.10, "m": 12345678901234567890})) . ')') =~ /"m": 12345678901234567890, "n": 1\.10\b/,
	1, 'sandbox: numbers are kept as they were given');

$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, template => 'BASE', added => [ 1, {} ] } });
is_deeply(create('plugin', $recorder->driver_config(template => 'base'))->{config}, $recorder->driver_config(template => 'BASE', added => [ 1, {} ]),
	'plugin: stored as the plugin normalizes it');
is_deeply(create('sandbox', $recorder->sandbox_config(template => 'base', leasePolicy => 'retain_on_failure'))->{config},
	$recorder->sandbox_config(template => 'BASE', added => [ 1, {} ], reuseLease => $false, leasePolicy => 'retain_on_failure'),
	'sandbox: too, but provider and lease policy stay');
$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, provider => 'bubblewrap', timeoutMs => 'x' } });
refused(create_statement('sandbox', $recorder->sandbox_config), '22023', qr/timeoutMs: /, 'sandbox: what the plugin normalizes has to be valid');

$recorder->answer(environmentValidateConfig => { ok => $false, errors => [ 'Image is needed', 'And more' ], warnings => ['Odd'] });
my $message = refused(create_statement('plugin', $recorder->driver_config), '22023', qr/ERROR:  22023: Image is needed\n/, 'plugin: not valid');
like($message, qr/DETAIL:  \{"errors": \["Image is needed", "And more"\], "warnings": \["Odd"\]\}/, 'plugin: with all there is to say');
refused(create_statement('sandbox', $recorder->sandbox_config), '22023', qr/ERROR:  22023: Image is needed\n/, 'sandbox: not valid');
$recorder->answer(environmentValidateConfig => { ok => $false });
refused(create_statement('plugin', $recorder->driver_config), '22023', qr/Plugin environment driver "envrt\.recorder:recorder-env" rejected its config\./, 'plugin: not valid, without a word');
refused(create_statement('sandbox', $recorder->sandbox_config), '22023', qr/Sandbox provider "recorder" rejected its config\./, 'sandbox: not valid, without a word');
$recorder->answer(environmentValidateConfig => { error => { code => -32002, message => 'It broke' } });
refused(create_statement('plugin', $recorder->driver_config), '38000', qr/It broke/, 'plugin: fails');
$recorder->answer(environmentValidateConfig => { error => { code => -32004, message => 'environmentValidateConfig is not implemented by this plugin' } });
is_deeply(create('plugin', $recorder->driver_config(a => 1))->{config}, $recorder->driver_config(a => 1), 'plugin: one that does not validate takes all');
$recorder->answer('environmentValidateConfig');

refused(create_statement('sandbox', { provider => 'nobody' }), '42704',
	qr/Sandbox provider "nobody" is not registered as a built-in provider and no matching plugin is available\./, 'no such provider');
refused(create_statement('plugin', { pluginKey => 'no.such', driverKey => 'd' }), '42704', qr/Plugin environment driver "no\.such:d" is not ready\./, 'no such plugin');
refused(create_statement('plugin', { pluginKey => 'envrt.recorder', driverKey => 'd' }), '42704', qr/Plugin "envrt\.recorder" does not declare environment driver "d"\./, 'no such driver');
is_deeply(create('sandbox', { provider => 'bubblewrap' })->{config}{provider}, 'bubblewrap', 'a built-in provider is asked of nobody');

#######################################################################
# Raw secrets
#######################################################################

my $before = count_secrets();
$recorder->calls;
$environment = create('sandbox', $recorder->sandbox_config(apiKey => 'raw-api-key-1', auth => { clientToken => 'raw-token-22', user => 'me' }, keys => [ 'raw-list-333', '' ]), 'My  Sandbox!');
my $config = $environment->{config};
is_deeply((($recorder->calls)[0])[0][1]{config},
	$recorder->sandbox_config(apiKey => 'raw-api-key-1', auth => { clientToken => 'raw-token-22', user => 'me' }, keys => [ 'raw-list-333', '' ], reuseLease => $false),
	'sandbox: the plugin validates the secrets as they are');
for my $case ([ 'apiKey', $config->{apiKey}, 'api-key' ], [ 'auth.clientToken', $config->{auth}{clientToken}, 'auth-client-token' ], [ 'keys.0', $config->{keys}[0], 'keys-0' ])
{
	my ($field, $reference, $slug) = @$case;
	my $secret = secret_of($reference);

	is_deeply({ %$reference, secretId => 'x' }, { type => 'secret_ref', secretId => 'x', version => 'latest' }, "$field: a reference");
	like($secret->{name}, qr/^environment-sandbox-my-sandbox-$slug-[0-9a-f]{8}$/, "$field: the name of its secret");
	is($secret->{description}, "Secret for My  Sandbox! $slug.", "$field: and its description");
}
is($config->{auth}{user}, 'me', 'what is no secret stays');
is($config->{keys}[1], '', 'so does what is empty');
is(count_secrets(), $before + 3, 'as many secrets as there were');
is(sql("SELECT count(*) FROM envrt.environments e, envrt.company_secrets s, envrt.company_secret_versions v WHERE concat(e, s, v) LIKE '%raw-%'"), '0', 'none of them is anywhere to be read');
is_deeply(config_in_lease($environment->{id}),
	$recorder->sandbox_config(apiKey => 'raw-api-key-1', auth => { clientToken => 'raw-token-22', user => 'me' }, keys => [ 'raw-list-333', '' ], reuseLease => $false),
	'the plugin gets the values');
is(sql("SELECT count(*) FROM envrt.environment_leases l WHERE l::text LIKE '%raw-%'"), '0', 'the lease does not');
is(sql("SELECT count(*) FROM envrt.environment_leases l WHERE l.metadata->'apiKey'->>'type' = 'secret_ref'"), '1', 'but the reference');

$environment = create('plugin', $recorder->driver_config(apiKey => 'raw-of-driver'), 'Other');
is($environment->{config}{driverConfig}{apiKey}{type}, 'secret_ref', 'plugin: a field behind $ref and anyOf is a secret too');
like(secret_of($environment->{config}{driverConfig}{apiKey})->{name}, qr/^environment-plugin-other-api-key-[0-9a-f]{8}$/, 'plugin: the name of its secret');
is_deeply(config_in_lease($environment->{id}), { directory => $directory, apiKey => 'raw-of-driver' }, 'plugin: and the plugin gets the value');

$config = create('sandbox', $recorder->sandbox_config(tokens => { one => 'raw-pattern' }, nested => [ ['raw-nested'] ]))->{config};
is_deeply([ $config->{tokens}{one}{type}, $config->{nested}[0][0]{type} ], [ 'secret_ref', 'secret_ref' ], 'sandbox: so is what a pattern names, and a field at the end of a schema that refers to itself');
$config = create('sandbox', $recorder->sandbox_config(loose => { name => 'n', other => 'raw-loose' }, pair => [ 'p', 'raw-pair' ], tuple => [ 't', 'raw-tuple' ], some => ['raw-some'],
		user => 'me', password => 'raw-password', token => 'raw-dependent'))->{config};
unlike(to_json($config), qr/raw-/, 'sandbox: and what other words of JSON schemas lead to');
is_deeply([ $config->{loose}{name}, $config->{pair}[0], $config->{tuple}[0], $config->{user} ], [qw(n p t me)], 'sandbox: but nothing else');
my $deep = 'raw-deep';
$deep = [$deep] for 1 .. 40;
refused(create_statement('sandbox', $recorder->sandbox_config(nested => $deep)), '54000', qr/configSchema is too deep or too large/, 'a secret that is too deep to be found');

$before = count_secrets();
is((sql_state($node, 'BEGIN; ' . create_statement('plugin', $recorder->driver_config(apiKey => 'gone-again')) . '; ROLLBACK;'))[0], '00000', 'made and rolled back');
$recorder->answer(environmentValidateConfig => { ok => $false, errors => ['The key gone-again is too short'] });
$message = refused(create_statement('plugin', $recorder->driver_config(apiKey => 'gone-again')), '22023', qr/The key \*\*\* is too short/, 'a secret in an error is masked');
unlike($message =~ s/^.*?LINE.*//rs, qr/gone-again/, 'everywhere in it');
$recorder->answer('environmentValidateConfig');
is(count_secrets(), $before, 'no secret is left by what was not stored');

# Masking takes no time, however often the secret is there; and keys are masked like strings.
$recorder->answer(environmentValidateConfig => { ok => $false, errors => [ 'raw-long' x 30_000, { 'key raw-long' => 1 } ] });
$message = refused("SET statement_timeout = '5s'; " . create_statement('plugin', $recorder->driver_config(apiKey => 'raw-long')), '22023', qr/ERROR:  22023: \*\*\*\n/, 'a secret that is there thirty thousand times');
like($message, qr/"key \*\*\*": 1/, 'one in a key');
$recorder->answer('environmentValidateConfig');

# The driver host knows what is raw too: what a worker wrote to stderr is shown when it ends.
$environment = $recorder->of_driver();
my $ending = acquire($node, $company, $environment, make_run($node, $company));
$recorder->answer(environmentValidateConfig => { ok => $false });
refused(create_statement('plugin', $recorder->driver_config(apiKey => 'raw-to-stderr', noisy => 'environmentValidateConfig')), '22023', qr/rejected its config/, 'a plugin that prints what it gets');
$recorder->answer('environmentValidateConfig');
$message = refused("SELECT envrt_execute('$ending->{id}', 'die')", '38000', qr/environmentValidateConfig was given \*\*\*/, 'what it printed is masked');
unlike($message, qr/raw-to-stderr/, 'all of it');

#######################################################################
# References
#######################################################################

my $secret = sql("SELECT envrt_create_secret('$company', 'theirs', 'value-of-secret')");
my $foreign = sql("SELECT envrt_create_secret('$other_company', 'not theirs', 'value-of-others')");
my $reference = { type => 'secret_ref', secretId => $secret, version => 'latest' };

$before = count_secrets();
$recorder->calls;
$environment = create('sandbox', $recorder->sandbox_config(apiKey => $reference, free => [$reference]));
is_deeply((($recorder->calls)[0])[0][1]{config}{apiKey}, 'value-of-secret', 'a reference is resolved for the validation');
is_deeply($environment->{config}, $recorder->sandbox_config(apiKey => $reference, free => [$reference], reuseLease => $false), 'and stored as it is, also where no schema asks for it');
is(count_secrets(), $before, 'no other secret is made of it');
is_deeply([ @{ config_in_lease($environment->{id}) }{qw(apiKey free)} ], [ 'value-of-secret', ['value-of-secret'] ], 'the plugin gets its value');
refused(create_statement('sandbox', $recorder->sandbox_config(apiKey => { %$reference, secretId => $foreign })), '42501', qr/Secret must belong to same company/, 'another company\'s secret');

# What the plugin makes of it does not get into the table either.
$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, apiKey => 'value-of-secret', copy => 'value-of-secret', auth => { clientToken => 'made-by-plugin' } } });
$environment = create('sandbox', $recorder->sandbox_config(apiKey => $reference));
is_deeply([ @{ $environment->{config} }{qw(apiKey copy)} ], [ $reference, $reference ], 'what the plugin copies becomes the reference again');
is($environment->{config}{auth}{clientToken}{type}, 'secret_ref', 'what it adds to a secret field becomes a secret');
$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, header => 'Bearer value-of-secret' } });
$before = sql('SELECT count(*) FROM envrt.environments');
refused(create_statement('sandbox', $recorder->sandbox_config(apiKey => $reference)), '38000', qr/put a secret into another field/, 'one that is a part of something else');
for my $elsewhere ({ header => "x\0value-of-secret" }, { 'value-of-secret' => 1 }, { headers => [ { 'X-value-of-secret' => 1 } ] })
{
	$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, %$elsewhere } });
	refused(create_statement('sandbox', $recorder->sandbox_config(apiKey => $reference)), '38000', qr/put a secret into another field/, 'one behind U+0000 or in a key');
}
is(sql('SELECT count(*) FROM envrt.environments'), $before, 'is not stored');
$recorder->answer('environmentValidateConfig');

# Nor what it makes of one: a short one, a trimmed one, and one whose id was given.
my ($short, $padded) = map { sql("SELECT envrt_create_secret('$company', 'secret $_', E'$_')") } 'tiny', 'padded-secret\\n';
my ($short_reference, $padded_reference) = map { { type => 'secret_ref', secretId => $_, version => 'latest' } } $short, $padded;
$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, apiKey => 'tiny', copy => 'tiny', free => 'padded-secret' } });
$environment = create('sandbox', $recorder->sandbox_config(apiKey => $short_reference, free => $padded_reference));
is_deeply([ @{ $environment->{config} }{qw(apiKey copy free)} ], [ $short_reference, $short_reference, $padded_reference ], 'a short one and a trimmed one are references again');
$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, free => 'value-of-secret', copy => 'value-of-secret' } });
$environment = create('sandbox', $recorder->sandbox_config(free => $secret));
is_deeply([ @{ $environment->{config} }{qw(free copy)} ], [ $secret, $reference ], 'so is the value of an id');
$recorder->answer('environmentValidateConfig');

# The plugins' own way: the secret's id, for which the worker asks.
$before = count_secrets();
$environment = create('sandbox', $recorder->sandbox_config(apiKey => $secret));
is_deeply($environment->{config}, $recorder->sandbox_config(apiKey => $secret, reuseLease => $false), 'the id of a secret is stored as it is');
is(count_secrets(), $before, 'and is no new secret');
my $run = make_run($node, $company);
$recorder->calls;
my $lease = acquire($node, $company, $environment->{id}, $run);
my ($asked) = $recorder->calls;
is($asked->[1]{config}{apiKey}, $secret, 'and goes to the plugin as it is');
unlike(to_json($asked), qr/value-of-secret/, 'without its value anywhere');
sql("SELECT envrt_rotate_secret('$secret', 'rotated-secret')");
is(row("SELECT stdout FROM envrt_execute('$lease->{id}', 'resolve', ARRAY['$secret'])")->{stdout}, length 'rotated-secret', 'the worker can ask for the value, the newest at each call');
like(row("SELECT stderr FROM envrt_execute('$lease->{id}', 'resolve', ARRAY['$foreign'])")->{stderr}, qr/Secret not found|Invalid secret reference|not /, 'but not for others');
release($node, $run);
is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', 'released');
# Whether another company has a secret of some id is not to be learnt: it is taken as an id of nothing is.
my $nothing = '00000000-0000-4000-8000-000000000000';
for my $field (qw(apiKey free))
{
	my %seen;

	for my $id ($foreign, $nothing)
	{
		$environment = create('sandbox', $recorder->sandbox_config($field => $id));
		$recorder->calls;
		for my $used ($environment->{id}, $recorder->sandbox($field => $id), $recorder->sandbox($field => { %$reference, secretId => $id }))
		{
			my (undef, $text) = sql_state($node, "SELECT status FROM envrt_acquire_lease('$company', '$used', '" . make_run($node, $company) . "')");
			($text .= join ' ', map { to_json($_) } $recorder->calls) =~ s/\Q$id\E|[0-9a-f-]{36}|"fence":\d+/x/g;
			unlike($text, qr/value-of-others/, "$field: nothing of another company's secret");
			push @{ $seen{$id} }, [ $text =~ /^(active|.*ERROR.*$)/m, $text =~ /secretValues|"secrets":/g ];
		}
	}
	is_deeply($seen{$foreign}, $seen{$nothing}, "$field: the id of another company's secret is as one of nothing") or diag explain \%seen;
}

# An id may be written in capitals, and beside an older version of the same secret.
$recorder->calls;
my $older = { type => 'secret_ref', secretId => uc $secret, version => 1 };
for my $config ({ apiKey => uc $secret }, { apiKey => $secret, free => $older }, { apiKey => $older, free => $secret })
{
	$environment = $recorder->sandbox(%$config);
	$lease = acquire($node, $company, $environment, make_run($node, $company));
	($asked) = $recorder->calls;
	is_deeply($asked->[1]{config}, $recorder->sandbox_config(reuseLease => $false, map { $_ => ref $config->{$_} ? 'value-of-secret' : $config->{$_} } keys %$config), 'the value where the reference is, and the id as it is');
	is(row("SELECT stdout FROM envrt_execute('$lease->{id}', 'resolve', ARRAY['" . uc($secret) . "'])")->{stdout}, length 'rotated-secret', 'and the worker gets the newest for it');
}

# A text may hold U+0000, and white space around a secret is often not said.
my $replaced = sql('SHOW server_encoding') eq 'UTF8' ? "\xef\xbf\xbd" : '?';
sql(qq(SELECT envrt_rotate_secret('$padded', E' padded-secret\\n')));
$environment = $recorder->sandbox(apiKey => $reference, free => $padded_reference);
$recorder->answer(environmentAcquireLease => { providerLeaseId => 'lease', metadata => { nul => "a\0rotated-secret", back => '\\u0000', padded => 'the padded-secret' } });
$lease = acquire($node, $company, $environment, make_run($node, $company));
is_deeply([ map { $lease->{metadata}{$_} } qw(nul back padded) ], [ "a$replaced***", '\\u0000', 'the ***' ], 'a secret behind U+0000 and a trimmed one are masked');
$recorder->answer(environmentExecute => { exitCode => 0, timedOut => $false, stdout => "a\0rotated-secret", stderr => '' });
is(sql("SELECT encode(stdout, 'escape') FROM envrt_execute_raw('$lease->{id}', 'true')"), 'a\\000***', 'also in bytes');
is(row("SELECT stdout FROM envrt_execute('$lease->{id}', 'true')")->{stdout}, "a\xef\xbf\xbd***", 'and in text, of which nothing is lost');
$recorder->answer('environmentExecute');

# The name of a provider lease is needed as it is, whatever short secrets there are.
my %lease = (providerLeaseId => 'tiny-1', metadata => { copy => 'tiny-1' });
$environment = $recorder->sandbox(apiKey => $short_reference, free => $reference);
$recorder->answer(environmentAcquireLease => \%lease);
$recorder->answer(environmentResumeLease => \%lease);
for my $how ('acquired', 'requested')
{
	my $run = make_run($node, $company);

	if ($how eq 'acquired') { $lease = acquire($node, $company, $environment, $run) }
	else { $lease = row("SELECT * FROM envrt_await_lease('" . sql("SELECT envrt_request_lease('$company', '$environment', '$run')") . "')") }
	is_deeply([ $lease->{provider_lease_id}, $lease->{metadata}{copy} ], [ 'tiny-1', '***-1' ], "$how: a provider lease keeps its name");
	$recorder->calls;
	release($node, $run);
	is(sql("SELECT envrt_await_cleanup('$lease->{id}')"), 'success', "$how: released");
	is_deeply([ map { $_->[1]{providerLeaseId} } $recorder->calls ], ['tiny-1'], "$how: by its name");
}
# But one that has a secret in it is of no use, nor one that can't be stored; it goes again.
for my $case ([ 'acquire', 'with-rotated-secret', qr/put a secret into the id of its lease/ ], [ 'request', 'with-rotated-secret', qr/put a secret into the id of its lease/ ],
	[ 'acquire', "with-nul\0", qr/answered with an id that can't be stored/ ],
	map { [ $_, 'x' x 2001, qr/the id that the provider has given its lease must not be longer than 2000 bytes\b(?!.*INSERT)/s, '54000' ] } 'acquire', 'request')
{
	my ($how, $id, $pattern, $state) = @$case;
	my $run = make_run($node, $company);
	my $statement = "SELECT envrt_acquire_lease('$company', '$environment', '$run')";

	$recorder->answer(environmentAcquireLease => { providerLeaseId => $id, metadata => {} });
	$recorder->calls;
	$statement = "SELECT envrt_await_lease('" . sql("SELECT envrt_request_lease('$company', '$environment', '$run')") . "')" if $how eq 'request';
	$message = refused($statement, $state // '38000', $pattern, "$how: an id that is of no use");
	unlike($message, qr/rotated-secret/, "$how: which is not shown");
	wait_until_sql($node, "SELECT count(*) = 0 FROM envrt.provider_leases WHERE environment_id = '$environment'", 'the ledger to be empty');
	ok((grep { $_->[0] =~ /ReleaseLease|DestroyLease/ && $_->[1]{providerLeaseId} eq $id } $recorder->calls), "$how: what was made goes again");
}
is(sql("SELECT count(*) FROM envrt.environment_leases l WHERE l::text LIKE '%rotated-secret%'"), '0', 'it was never in a table');
$recorder->answer($_) for qw(environmentAcquireLease environmentResumeLease);

# Those in the env of a command are the command's to print, but nobody else's.
$lease = acquire($node, $company, $recorder->of_driver(apiKey => $reference, noisy => 'environmentExecute'), make_run($node, $company));
my $of_env = { type => 'secret_ref', secretId => sql("SELECT envrt_create_secret('$company', 'of env', 'value-in-env')"), version => 'latest' };
is(row("SELECT stdout FROM envrt_execute('$lease->{id}', 'true', env => '" . to_json({ T => $of_env }) . "')")->{stdout}, "ok\n", 'a command with a secret in its env');
$message = refused("SELECT envrt_execute('$lease->{id}', 'die')", '38000', qr/environmentExecute was given \*+ T \*{12}/, 'a secret of another command in what the worker printed');
unlike($message, qr/value-in-env/, 'it is masked');

# References to what the caller can't see.
sql(<<"SQL");
CREATE ROLE app LOGIN;
GRANT USAGE ON SCHEMA envrt TO app;
GRANT SELECT ON envrt.companies, envrt.company_secrets TO app;
GRANT EXECUTE ON FUNCTION envrt_create_environment, envrt_probe_config TO app;
ALTER TABLE envrt.company_secrets ENABLE ROW LEVEL SECURITY;
SQL
for my $given ($reference, $secret)
{
	my $kind = ref $given ? 'reference' : 'id';

	refused('SET ROLE app; ' . create_statement('sandbox', $recorder->sandbox_config(apiKey => $given)), '42704', qr/Secret not found/, "a $kind of a secret that the caller can't see");
	refused('SET ROLE app; SELECT envrt_probe_config(' . join(', ', map { literal($_) } $company, 'sandbox', to_json($recorder->sandbox_config(free => $given))) . ')',
		'42704', qr/Secret not found/, "a $kind in a probe that the caller can't see");
}

# Nor can it be the plugin that refers to it.
for my $given ($reference, $secret)
{
	$recorder->answer(environmentValidateConfig => { ok => $true, normalizedConfig => { directory => $directory, free => $given } });
	refused('SET ROLE app; ' . create_statement('sandbox', $recorder->sandbox_config), '42704', qr/Secret not found/, 'what a plugin refers to');
}
$recorder->answer('environmentValidateConfig');

#######################################################################
# Probes
#######################################################################

sub probe
{
	my ($environment) = @_;

	return row("SELECT * FROM envrt_probe('$environment')");
}

sub probe_statement
{
	my ($driver, $config) = @_;

	return 'SELECT * FROM envrt_probe_config(' . join(', ', map { literal($_) } $company, $driver, to_json($config)) . ')';
}

my %of_sandbox = (provider => 'recorder', pluginKey => 'envrt.recorder');
my %of_driver = (pluginKey => 'envrt.recorder', driverKey => 'recorder-env');
my $by_provider = $recorder->sandbox(image => 'x');
my $by_driver = $recorder->of_driver(image => 'x');

$recorder->calls;
is_deeply(probe($by_provider), { ok => $true, driver => 'sandbox', summary => 'Sandbox provider "recorder" probe passed.', details => { %of_sandbox, diagnostics => [], metadata => {} } },
	'sandbox: a probe without a word');
is_deeply(probe($by_driver), { ok => $true, driver => 'plugin', summary => 'Plugin environment driver "envrt.recorder:recorder-env" probe passed.', details => { %of_driver, diagnostics => [], metadata => {} } },
	'plugin: a probe without a word');
is_deeply([ $recorder->calls ],
	[
		[ environmentProbe => { driverKey => 'recorder', companyId => $company, environmentId => $by_provider, config => $recorder->sandbox_config(image => 'x', reuseLease => $false) } ],
		[ environmentProbe => { driverKey => 'recorder-env', companyId => $company, environmentId => $by_driver, config => { directory => $directory, image => 'x' } } ]
	],
	'what probes ask');
$recorder->answer(environmentProbe => { ok => $false });
is(probe($by_provider)->{summary}, 'Sandbox provider "recorder" probe failed.', 'sandbox: failed without a word');
is(probe($by_driver)->{summary}, 'Plugin environment driver "envrt.recorder:recorder-env" probe failed.', 'plugin: failed without a word');
my $diagnostics = [ { severity => 'warning', message => 'm', code => 'c', details => { a => 1 } } ];
$recorder->answer(environmentProbe => { ok => $true, summary => 'All is well.', diagnostics => $diagnostics, metadata => { b => [2] } });
is_deeply(probe($by_provider), { ok => $true, driver => 'sandbox', summary => 'All is well.', details => { %of_sandbox, diagnostics => $diagnostics, metadata => { b => [2] } } }, 'sandbox: with all there is to say');
is_deeply(probe($by_driver), { ok => $true, driver => 'plugin', summary => 'All is well.', details => { %of_driver, diagnostics => $diagnostics, metadata => { b => [2] } } }, 'plugin: with all there is to say');
$recorder->answer(environmentProbe => { error => { code => -32002, message => 'No network' } });
is_deeply(probe($by_driver), { ok => $false, driver => 'plugin', summary => 'Plugin environment driver "envrt.recorder:recorder-env" probe failed.', details => { %of_driver, error => 'No network' } },
	'plugin: a probe that breaks is a row');
is_deeply(row(probe_statement('sandbox', { provider => 'nobody' })), { ok => $false, driver => 'sandbox', summary => 'Sandbox provider "nobody" is not installed or its plugin worker is not running.', details => { provider => 'nobody' } },
	'sandbox: no such provider is a row');
is_deeply(row(probe_statement('plugin', { pluginKey => 'k', driverKey => 'd' })), { ok => $false, driver => 'plugin', summary => 'Plugin environment driver "k:d" is not ready.', details => { pluginKey => 'k', driverKey => 'd' } },
	'plugin: no such plugin is a row');

# Of what is not stored.
$recorder->answer(environmentProbe => { ok => $true, summary => 'With raw-unsaved and rotated-secret', metadata => { key => 'raw-unsaved' } });
$before = count_secrets();
$recorder->calls;
my $probed = row(probe_statement('sandbox', $recorder->sandbox_config(apiKey => 'raw-unsaved', auth => { clientToken => $reference })));
is_deeply([ $probed->{summary}, $probed->{details}{metadata} ], [ 'With *** and ***', { key => '***' } ], 'secrets in what a probe says are masked');
my @calls = $recorder->calls;
is_deeply([ map { $_->[0] } @calls ], [qw(environmentValidateConfig environmentProbe)], 'a config that is not stored is validated, and probed');
is_deeply([ @{ $calls[1][1]{config} }{qw(apiKey auth)} ], [ 'raw-unsaved', { clientToken => 'rotated-secret' } ], 'with its secrets');
ok(!exists $calls[1][1]{environmentId}, 'of no environment');
is(count_secrets(), $before, 'nothing is stored');
$recorder->answer(environmentValidateConfig => { ok => $false, errors => ['Not raw-unsaved'] });
refused(probe_statement('sandbox', $recorder->sandbox_config(apiKey => 'raw-unsaved')), '22023', qr/Not \*\*\*/, 'a config that is not valid is an error');
$recorder->answer('environmentValidateConfig');
sql("INSERT INTO envrt.plugins (plugin_key, package_name, version, manifest_json, status) VALUES ('envrt.recorder', 'x', '1', '{}', 'disabled')");
is(probe($by_driver)->{summary}, 'Plugin environment driver "envrt.recorder:recorder-env" is not ready.', 'plugin: disabled');
is(probe($by_provider)->{summary}, 'Sandbox provider "recorder" is not installed or its plugin worker is not running.', 'sandbox: disabled');
refused(create_statement('plugin', $recorder->driver_config), '55000', qr/Plugin environment driver "envrt\.recorder:recorder-env" is not ready\./, 'plugin: not created either');

#######################################################################
# A reference where a command may come to read the value: a right of its own
#######################################################################

{
	$recorder->answer('environmentValidateConfig');
	sql("UPDATE envrt.plugins SET status = 'ready'");
	sql(q{CREATE ROLE maker LOGIN; GRANT USAGE ON SCHEMA envrt TO maker;
		GRANT SELECT ON envrt.companies, envrt.company_secrets TO maker; GRANT SELECT, INSERT, UPDATE ON envrt.environments TO maker;
		GRANT EXECUTE ON FUNCTION envrt_create_environment, envrt_probe_config TO maker;
		CREATE POLICY maker ON envrt.company_secrets TO maker USING (true)});
	my $secret = sql("SELECT envrt_create_secret('$company', 'for the right', 'value-for-the-right')");
	my $other = sql("SELECT envrt_create_secret('$other_company', 'for the right', 'value-for-the-right')");
	my $of = sub { return { type => 'secret_ref', secretId => $_[0], version => 'latest' } };
	my $ref = $of->($secret);
	my $asks = sub {
		my ($statement, $state, $what) = @_;

		is((sql_state($node, $statement, psql => { extra_params => [ '-U', 'maker' ] }))[0], $state, $what);
		return;
	};
	my $insert = sub {
		my ($driver, $config, $of_company) = @_;

		return 'INSERT INTO envrt.environments (company_id, name, driver, config) VALUES ('
		  . join(', ', map { literal($_) } $of_company // $company, 'By hand ' . ++$serial, $driver, to_json($config)) . ') RETURNING id';
	};
	my @exposed = (
		[ 'sandbox', { provider => 'bubblewrap', env => { A => 'text', V => $ref } }, 'the env of a sandbox' ],
		[ 'sandbox', $recorder->sandbox_config(env => { V => $ref }), 'the env of a provider' ],
		[ 'sandbox', $recorder->sandbox_config(template => $ref), 'a field that its schema does not mark' ],
		[ 'sandbox', $recorder->sandbox_config(list => [ { deep => $ref } ]), 'any depth' ],
		[ 'sandbox', $recorder->sandbox_config(template => $secret), 'the id alone' ],
		[ 'sandbox', $recorder->sandbox_config(apiKey => $ref, 'auth.clientToken' => $ref, ' apiKey' => $ref), 'names that look like marked ones' ],
		[ 'plugin', $recorder->driver_config(env => { V => $ref }), 'a plugin' ]);
	my @hidden = (
		[ 'sandbox', $recorder->sandbox_config(apiKey => $ref, auth => { clientToken => $ref }), 'what is for the provider' ],
		[ 'sandbox', { provider => 'bubblewrap', env => { V => 'text' } }, 'no secret' ],
		[ 'plugin', $recorder->driver_config(apiKey => $ref), 'what is for the plugin' ]);

	$asks->(create_statement(@$_[ 0, 1 ]), '42501', "not without the right: $_->[2]") for @exposed;
	$asks->(probe_statement(@$_[ 0, 1 ]), '42501', "... nor in a probe: $_->[2]") for @exposed[ 0 .. 2 ];
	$asks->($insert->(@$_[ 0, 1 ]), '42501', "... nor by hand: $_->[2]") for @exposed;
	$asks->(create_statement(@$_[ 0, 1 ]), '00000', "without the right: $_->[2]") for @hidden;

	# By hand, on what is there
	my $plain = sql($insert->('sandbox', { provider => 'bubblewrap' }));
	my $has = sql($insert->('sandbox', { provider => 'bubblewrap', env => { V => $ref } }));
	my $keyed = sql($insert->('sandbox', { provider => 'recorder', apiKey => $ref }));
	my $update = sub { return "UPDATE envrt.environments SET $_[1] WHERE id = '$_[0]'" };
	my $env = literal(to_json({ V => $ref }));
	$asks->($update->($plain, "config = config || jsonb_build_object('env', $env\::jsonb)"), '42501', 'an UPDATE that makes one');
	$asks->($update->($has, "name = 'new', config = config || '{\"memoryMb\": 100}'"), '00000', '... not one that leaves it');
	$asks->($update->($has, "config = jsonb_set(config, '{env,W}', config #> '{env,V}')"), '42501', '... nor a second place for it');
	$asks->($update->($keyed, "config = config || jsonb_build_object('env', jsonb_build_object('V', config -> 'apiKey'))"), '42501', '... nor one from what is for the provider');
	$asks->($update->($keyed, "config = config || '{\"provider\": \"bubblewrap\"}'"), '42501', '... nor the same for another provider');
	$asks->($update->($has, "company_id = '$other_company'"), '42501', '... nor for another company');
	$asks->("MERGE INTO envrt.environments e USING (SELECT 1) s ON e.id = '$plain' WHEN MATCHED THEN UPDATE SET config = jsonb_set(e.config, '{env}', $env)", '42501', '... nor a MERGE')
	  if sql('SHOW server_version_num') >= 150000;

	sql('GRANT EXECUTE ON FUNCTION envrt.use_secrets_in_env TO maker');
	$asks->(create_statement(@$_[ 0, 1 ]), '00000', "with the right: $_->[2]") for @exposed[ 0, 1, 6 ];
	$asks->($insert->(@$_[ 0, 1 ]), '00000', "... by hand: $_->[2]") for @exposed[ 0, 1, 6 ];
	$asks->($update->($plain, "config = config || jsonb_build_object('env', $env\::jsonb)"), '00000', '... an UPDATE');
	$asks->($insert->('sandbox', { provider => 'bubblewrap', env => { V => $of->($other) } }), '42501', 'not one of another company');
	sql('REVOKE SELECT ON envrt.company_secrets FROM maker');
	$asks->($insert->('sandbox', { provider => 'bubblewrap', env => { V => $ref } }), '42501', 'not one that can\'t be seen');
}

# What was sealed or stored is in no log.  (What came raw in a statement is the statement's to log.)
unlike(slurp($node->logfile), qr/value-of-plugin|made-by-plugin/, 'the log has nothing of what the plugin made');

#######################################################################
# Without a driver host
#######################################################################

$node = new_cluster('bare', preload => 0);
$company = make_company($node);
refused(create_statement('plugin', { pluginKey => 'k', driverKey => 'd' }), '55000', qr/Plugin environment config validation requires a running plugin worker manager\..*shared_preload_libraries/s, 'not preloaded: create');
is_deeply(row(probe_statement('plugin', { pluginKey => 'k', driverKey => 'd' })),
	{ ok => $false, driver => 'plugin', summary => 'Plugin environment probes require a plugin worker manager for "k:d".', details => { pluginKey => 'k', driverKey => 'd' } }, 'not preloaded: a probe of a plugin');
is_deeply(row(probe_statement('sandbox', { provider => 'e2b' })), { ok => $false, driver => 'sandbox', summary => 'Sandbox provider "e2b" requires a running provider plugin.', details => { provider => 'e2b' } },
	'not preloaded: a probe of a provider');

done_testing();
