#!/usr/bin/perl
# What workers may ask of the host: secrets, state, metrics, the log; and that no secret shows.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use HostTest;
use JSON::PP ();
use Test::More;

my $json = JSON::PP->new->utf8->canonical;
my $path = temporary_directory();
my $data = temporary_directory();
my @all = qw(environment.drivers.register secrets.read-ref plugin.state.read plugin.state.write metrics.write);
my $id = 'abcdefab-0123-4567-89ab-0123456789ab';
my $rival_id = 'abcdefab-0123-4567-89ab-0123456789ad';
my $other_id = 'abcdefab-0123-4567-89ab-0123456789ac';

# A plugin that does what the call's config says; asks are {method, params}.
sub folder
{
	my ($key, @capabilities) = @_;

	mkdir "$path/$key";
	spew("$path/$key/manifest.json",
		$json->encode({
			id => $key, version => '1', capabilities => \@capabilities, entrypoints => { worker => 'worker' },
			environmentDrivers => [ { driverKey => $key, kind => 'sandbox_provider' } ]
		}));
	spew("$path/$key/worker", slurp("$FindBin::RealBin/plugins/asking_worker"), 0755);
	return;
}

my $host;

sub start
{
	$host = start_host(control => { pluginPath => [$path], dataDirectory => $data });
	return;
}

sub params
{
	my ($key, $config, %other) = @_;

	return { driverKey => $key, companyId => 'company-1', environmentId => 'e', config => $config, %other };
}

# What the host answers when the worker asks.
sub ask
{
	my ($key, $method, $params, %other) = @_;
	my $answer = $host->call('environmentProbe', params($key, { ask => [ { method => $method, params => $params } ] }, %other));

	return $answer->{result}[0] // $answer;
}

sub refused_with
{
	my ($answer, $code, $message, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply($answer->{error}, { code => $code, message => $message }, $name) or diag explain $answer;
	return;
}

mkdir "$data/pg_envrt";
folder('all', @all);
folder('none', 'environment.drivers.register');
folder('rate', @all);
folder('reader', 'environment.drivers.register', 'plugin.state.read');
start();

# Initialize, and what is always there.
{
	my $initialize = $host->call('environmentProbe', params('all', { initialized => 1 }))->{result};

	is($initialize->{manifest}{id}, 'all', 'initialize brings the manifest');
	is_deeply($initialize->{config}, {}, '... a config');
	is($initialize->{apiVersion}, 1, '... the version');
	ok(exists $initialize->{databaseNamespace} && !defined $initialize->{databaseNamespace}, '... no namespace');
	like($initialize->{instanceInfo}{instanceId}, qr/^[0-9a-f]{32}$/, '... the instance');
	like($initialize->{instanceInfo}{hostVersion}, qr/^\d/, '... the host\'s version');
	is_deeply(ask('none', 'config.get', {})->{result}, {}, 'config.get');
	refused_with(ask('all', 'issues.list', {}), -32601, 'Host does not handle method "issues.list"', 'what there is not');
	refused_with(ask('none', 'http.fetch', {}),
		-32001, 'Plugin "none" is missing required capability "http.outbound" for method "http.fetch"', 'what it may not');
	my $invocation = $host->call('environmentProbe', params('all', { invocation => 1 }))->{result};
	is_deeply($invocation->{scope}, { companyId => 'company-1' }, 'a call says for which company it is');
}

# Capabilities.
{
	my %need = (
		'secrets.resolve' => 'secrets.read-ref', 'state.get' => 'plugin.state.read', 'state.set' => 'plugin.state.write',
		'state.delete' => 'plugin.state.write', 'metrics.write' => 'metrics.write');

	for my $method (sort keys %need)
	{
		refused_with(ask('none', $method, {}),
			-32001, qq(Plugin "none" is missing required capability "$need{$method}" for method "$method"), "without: $method");
	}
}

# Secrets.
{
	my $secret = "s3cret-\"value\"\nsecond-line-of-it";
	my $client = $host->connect;

	is(ask('all', 'secrets.resolve', { secretRef => $id }, secrets => { $id => $secret })->{result}, $secret, 'a secret of the call');
	is(ask('all', 'secrets.resolve', { secretRef => uc $id }, secrets => { $id => $secret })->{result}, $secret, '... in capitals');
	is(ask('all', 'secrets.resolve', { secretRef => { type => 'secret_ref', secretId => $id } }, secrets => { $id => $secret })->{result},
		$secret, '... as the config has it');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $other_id }, secrets => { $id => $secret }),
		-32603, "Secret not found: $other_id", 'another one');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $id }), -32603, "Secret not found: $id", 'one of a call that has ended');
	refused_with(ask('all', 'secrets.resolve', { secretRef => 'x' }, secrets => { x => 'y' }),
		-32603, 'Invalid secret reference: x', 'what is no reference');
	refused_with(ask('all', 'secrets.resolve', {}), -32603, 'Invalid secret reference: ', 'none');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $id }, secrets => { $id => undef }),
		-32603, "No version found for secret: $id", 'one without a version');
	my $seen = $host->call('environmentProbe', params('all', { params => 1 }, secrets => { $id => $secret }))->{result};
	is_deeply($seen, params('all', { params => 1 }), 'the worker is not sent the secrets');

	# Of calls in flight, and with an invocation only of that one.
	my $holding = $client->send_call('environmentProbe', params('all', { hold => 1 }, secrets => { $other_id => 'other-secret' }));
	wait_until('it is sent', sub { (grep { $_->{key} eq 'all' } @{ $host->stats->{plugins} })[0]{activeCalls} == 1 });
	is(ask('all', 'secrets.resolve', { secretRef => $other_id })->{result}, 'other-secret', 'a secret of another call in flight');
	my $answer = $host->call('environmentProbe',
		params('all', { tell => 1, ask => [ { method => 'secrets.resolve', params => { secretRef => $other_id } } ] }))->{result}[0];
	refused_with($answer, -32603, "Secret not found: $other_id", '... but not when the worker says which call it is about');
	# Not those of another company, nor while nobody can tell whose the request is.
	my $theirs = $host->connect;
	my $rival = $theirs->send_call('environmentProbe', params('all', { keep => 1 }, companyId => 'company-2', secrets => { $rival_id => 'rival-secret' }));
	wait_until('it is sent', sub { (grep { $_->{key} eq 'all' } @{ $host->stats->{plugins} })[0]{activeCalls} == 2 });
	my $several = 'Secret refused: calls of several companies are under way, and the request does not say with paperclipInvocationId which of them it is about';
	refused_with(ask('all', 'secrets.resolve', { secretRef => $rival_id }, secrets => { $id => $secret }),
		-32603, $several, 'a secret of another company\'s call');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $id }, secrets => { $id => $secret }), -32603, $several, '... and one of its own');
	$answer = $host->call('environmentProbe',
		params('all', { tell => 1, ask => [ { method => 'secrets.resolve', params => { secretRef => $id } } ] }, secrets => { $id => $secret }))->{result}[0];
	is($answer->{result}, $secret, '... unless the worker says which call it is about');
	close $theirs->{socket};
	wait_until('its client is gone', sub { 1 == grep { $_->{method} eq 'environmentProbe' } @{ $host->stats->{calls} } });
	is(ask('all', 'secrets.resolve', { secretRef => $other_id })->{result}, 'other-secret', '... or the other call is dropped');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $rival_id }), -32603, "Secret not found: $rival_id", '... with its secrets');
	$host->call('environmentProbe', params('all', { drop => 1 }));
	is($client->answer($holding)->{result}, 'held', 'the other call ends');
	refused_with(ask('all', 'secrets.resolve', { secretRef => $other_id }), -32603, "Secret not found: $other_id", '... and its secret with it');

	# What nobody can ask for is in nobody's way.
	$theirs = $host->connect;
	$theirs->send_call('environmentProbe', params('all', { keep => 1 }, companyId => 'company-2', secrets => { 'raw:a' => 'raw-secret' }));
	wait_until('it is sent', sub { 1 == grep { $_->{method} eq 'environmentProbe' } @{ $host->stats->{calls} } });
	is(ask('all', 'secrets.resolve', { secretRef => $id }, secrets => { $id => $secret })->{result}, $secret, 'a secret beside another company\'s call that has none to ask for');
	close $theirs->{socket};

	# The rate.
	my $answers = $host->call('environmentProbe',
		params('rate', { ask => [ map { { method => 'secrets.resolve', params => { secretRef => $id } } } 1 .. 35 ] }, secrets => { $id => 'rate-secret' }))->{result};
	is(scalar(grep { ($_->{result} // '') eq 'rate-secret' } @$answers), 30, 'thirty secrets a minute');
	refused_with($answers->[34], -32603, 'Rate limit exceeded for secret resolution', '... and no more');
	is(ask('rate', 'secrets.resolve', { secretRef => $id }, companyId => 'company-2', secrets => { $id => 'rate-secret' })->{result},
		'rate-secret', '... of one company: the next has its own thirty');
}

# What is masked.
{
	my $secret = "tell-nobody-\"this\"\nBEGIN-second-line\nx";
	my @written = (
		log => { level => 'info', message => "got tell-nobody-\"this\"\nBEGIN-second-line\nx.", meta => { value => $secret } },
		stderr => "got $secret and " . $json->encode([$secret]) . "\n");

	ask('all', 'secrets.resolve', { secretRef => $id }, secrets => { $id => $secret, $other_id => 'tiny' });
	my $answer = $host->call('environmentProbe', params('all', { @written, error => "I was told $secret", note => 'no text' }));
	my $log = slurp($host->{stderr});
	like($log, qr/^LOG: plugin "all": got \*+\. \{"value":"\*+"\}$/m, 'a log line is masked');
	unlike($log, qr/tell-nobody|second-line/, '... and nothing shows');
	like($answer->{error}{data}{detail}, qr/got \*+/, 'the end of stderr is masked, after the call that brought the secret');
	unlike($json->encode($answer), qr/tell-nobody|second-line/, '... and nothing shows');
	like($answer->{error}{message}, qr{^I was told \*+$}, 'so is the error\'s text');
	$answer = $host->call('environmentProbe', params('all', { error => ('.' x 990) . 'BEGIN-second-line' }));
	like($answer->{error}{message}, qr/^\.{990}\*+$/, '... where it is cut off, too');
	# Cut off where the excerpt begins.
	$answer = $host->call('environmentProbe', params('all', { stderr => "tell-nobody-\"this\"\nBEGIN-second-line\nx" . ('.' x 7990), error => 'failed' }));
	unlike($answer->{error}{data}{detail}, qr/second-line|line\nx/, 'a secret that is cut off is masked as well');
	$answer = $host->call('environmentProbe', params('none', { stderr => $secret, error => 'failed' }));
	like($answer->{error}{data}{detail}, qr/tell-nobody/, 'another plugin was not told, and is not masked');
	my $text = 'a tiny secret';
	$answer = $host->call('environmentProbe', params('all', { stderr => $text, error => 'failed' }));
	like($answer->{error}{data}{detail}, qr/a \*\*\*\* secret$/, 'short ones, too');
}

# What a command was given may be a secret as well.
{
	my %given = (
		command => 'tool',
		args => [ 'argument-of-a-command' ],
		env => { TOKEN => "value-of-env-\n-----KEY-----", SHORT => 'main' },
		stdin => "input-of-a-command\nits-second-line\n" . 'x' x 300_000);
	my $all = "value-of-env-\n-----KEY-----, argument-of-a-command, input-of-a-command, its-second-line";
	my $shown = qr/value-of|KEY|argument-of|input-of|second-line/;
	my $execute = sub { return $host->call('environmentExecute', params('all', { log => { message => "ran with $all in main" }, stderr => "said $all", @_ }, %given)) };

	my $answer = $execute->(error => "could not run with $all in main");
	like($answer->{error}{message}, qr/^could not run with \*+, \*+, \*+, \*+ in main$/, 'an error has nothing of what a command was given');
	like($answer->{error}{data}{detail}, qr/said \*+, \*+, \*+, \*+$/, '... nor has stderr');
	like(slurp($host->{stderr}), qr/^LOG: plugin "all": ran with \*+, \*+, \*+, \*+ in main$/m, '... nor the log');
	$answer = $host->call('environmentProbe', params('all', { stderr => "it was $all", error => "it was $all" }, companyId => 'company-2'));
	unlike($json->encode($answer) . slurp($host->{stderr}), $shown, '... nor the next error, of another company');
	ask('all', 'config.get', {}, secrets => { $id => 'a secret that stays' });
	$host->call('environmentExecute', params('all', {}, command => 'x', args => [ map { "argument $_ of very many" } $_ * 100 .. $_ * 100 + 99 ])) for 1 .. 12;
	$answer = $execute->(stderr => 'a secret that stays', error => "could not run with $all in main");
	like($answer->{error}{message}, qr/^could not run with \*+, \*+, \*+, \*+ in main$/, '... also after many other commands');
	like($answer->{error}{data}{detail}, qr/\*{19}$/, '... which push out no secret');
}

# What is masked of secrets that are longer than what is shown.
{
	my $secret = join '', map { sprintf 'part-%05d.', $_ } 1 .. 3000;
	my %secrets = (secrets => { $id => $secret });
	my $answer = $host->call('environmentProbe', params('all', { error => "told $secret", stderr => "got $secret!", log => { message => "have $secret" } }, %secrets));

	like($answer->{error}{message}, qr/^told \*+$/, 'a long secret is masked in an error');
	like($answer->{error}{data}{detail}, qr/\*{7000}!$/, '... in the end of stderr');
	like(slurp($host->{stderr}), qr/have \*+$/m, '... and in the log');
	unlike($json->encode($answer) . slurp($host->{stderr}), qr/part-\d/, '... and nothing shows');
}

# Others' secrets don't push a secret out, and many and long ones don't hold up the host.
{
	my $mine = 'my-company-has-this-secret';
	my @theirs = map { "their-secret-of-many-$_" } 1 .. 2000;
	my $begin = "a" x 8;
	my $lines = join "\n", map { $begin . ('b' x $_) } 1 .. 256;

	ask('all', 'config.get', {}, secrets => { $id => $mine });
	ask('all', 'config.get', {}, companyId => 'company-3', secrets => { "raw:$_" => $theirs[$_] }) for 0 .. $#theirs;
	my $answer = $host->call('environmentProbe',
		params('all', { stderr => "$mine $theirs[-1]", error => 'failed' }, companyId => 'company-3'));
	like($answer->{error}{data}{detail}, qr/\*{26} \*{25}$/, 'a secret is masked after two thousand of another company');
	# What a call in flight brought stays, also when its company brings more than there is room for.
	my $client = $host->connect;
	my $holding = $client->send_call('environmentProbe', params('all', { hold => 1 }, companyId => 'company-3', secrets => { $id => 'held-by-a-call' }));
	wait_until('it is sent', sub { 1 == grep { $_->{method} eq 'environmentProbe' } @{ $host->stats->{calls} } });
	ask('all', 'config.get', {}, companyId => 'company-3', secrets => { "raw:$_" => "new-$theirs[$_]" }) for 0 .. $#theirs;
	$answer = $host->call('environmentProbe', params('all', { stderr => 'held-by-a-call', error => 'failed' }));
	like($answer->{error}{data}{detail}, qr/\*{14}$/, 'a secret of a call in flight stays masked');
	$host->call('environmentProbe', params('all', { drop => 1 }));
	$client->answer($holding);

	ask('all', 'config.get', {}, secrets => { $id => $lines });
	my $took = elapsed(sub {
			my $log = { level => 'info', message => 'a' x 300_000, meta => { value => 'a' x 300_000 } };
			my $sent = $client->send_call('environmentProbe', params('all', { log => $log }));
			$host->call('environmentProbe', params('none', { params => 1 }));
			$client->answer($sent);
		});
	cmp_ok($took, '<', 10, 'long log lines don\'t hold up calls of other plugins');
}

# The log is limited.
{
	$host->call('environmentProbe', params('all', { flood => 1000 }));
	my $lines = () = slurp($host->{stderr}) =~ /plugin "all": flood/g;
	cmp_ok($lines, '<=', 260, 'a flood of log lines is cut short');
	cmp_ok($lines, '>=', 100, '... but not at once');
	wait_until('there is room again', sub {
			$host->call('environmentProbe', params('all', { log => { message => 'later' } }));
			slurp($host->{stderr}) =~ /plugin "all": later/;
		});
	like(slurp($host->{stderr}), qr/plugin "all": \d+ log lines are left out/, '... and it is said');
}

# State.
{
	my %key = (scopeKind => 'company', scopeId => 'c', stateKey => 'k');

	is(ask('all', 'state.get', {%key})->{result}, undef, 'state that is not there');
	ok(exists ask('all', 'state.set', { %key, value => { a => [ 1, "\x{fc}\n" ] } })->{result}, 'state is set');
	is_deeply(ask('all', 'state.get', {%key})->{result}, { a => [ 1, "\x{fc}\n" ] }, '... and got');
	is_deeply(ask('all', 'state.get', { %key, namespace => 'default' })->{result}, { a => [ 1, "\x{fc}\n" ] }, '... whose namespace is default');
	is(ask('all', 'state.get', { %key, namespace => 'n' })->{result}, undef, '... in no other');
	ok(exists ask('all', 'state.set', { %key, stateKey => "a\0b", value => "c\0d" })->{result}, 'a text may hold U+0000');
	is(ask('all', 'state.get', { %key, scopeId => 'd' })->{result}, undef, '... of no other');
	is(ask('all', 'state.get', { scopeKind => 'instance', stateKey => 'k' })->{result}, undef, '... kind');
	is(ask('reader', 'state.get', {%key})->{result}, undef, '... plugin');
	refused_with(ask('reader', 'state.set', { %key, value => 1 }),
		-32001, 'Plugin "reader" is missing required capability "plugin.state.write" for method "state.set"', 'reading is not writing');
	refused_with(ask('all', 'state.set', { stateKey => 'k', value => 1 }), -32603, 'State key must have a scopeKind and a stateKey', 'half a key');
	refused_with(ask('all', 'state.set', { %key, value => 'x' x 1_100_000 }),
		-32603, 'State of the plugin would be larger than 1 MiB', 'too much');
	ok(-s "$data/pg_envrt/plugin_state/all.json", 'it is in its file');
	is((stat "$data/pg_envrt/plugin_state/all.json")[2] & 07777, 0600, '... which is ours alone');
	my $answers = $host->call('environmentProbe',
		params('all', { ask => [ map { { method => 'state.set', params => { %key, stateKey => "n$_", value => $_ } } } 1 .. 200 ] }))->{result};
	is(scalar(grep { exists $_->{result} } @$answers), 200, 'two hundred at once');
	kill 'KILL', $host->{pid};
	waitpid $host->{pid}, 0;
	EnvrtFixture::unregister($host);
	start();
	is_deeply(ask('all', 'state.get', {%key})->{result}, { a => [ 1, "\x{fc}\n" ] }, 'it outlives a host that is killed');
	is(ask('all', 'state.get', { %key, stateKey => 'n200' })->{result}, 200, '... all of it');
	is(ask('all', 'state.get', { %key, stateKey => "a\0b" })->{result}, "c\0d", '... with U+0000');
	ok(exists ask('all', 'state.delete', {%key})->{result}, 'it is deleted');
	$host->terminate;
	start();
	is(ask('all', 'state.get', {%key})->{result}, undef, '... for good');
	# A disk that does not take it.
	rename "$data/pg_envrt/plugin_state", "$data/pg_envrt/away";
	spew("$data/pg_envrt/plugin_state", '');
	refused_with(ask('all', 'state.set', { %key, value => 1 }), -32603, 'State could not be stored', 'what can not be stored');
	unlink "$data/pg_envrt/plugin_state";
	rename "$data/pg_envrt/away", "$data/pg_envrt/plugin_state";
	is(ask('all', 'state.get', {%key})->{result}, undef, '... is not remembered');
	is(ask('all', 'state.get', { %key, stateKey => 'n200' })->{result}, 200, '... and the rest is there');
	# What is gone from the disk takes no room.
	my $file = "$data/pg_envrt/plugin_state/all.json";
	ok(exists ask('all', 'state.set', { %key, stateKey => 'large', value => 'x' x 600_000 })->{result}, 'a large value');
	rename $file, "$file.away";
	mkdir $file;
	refused_with(ask('all', 'state.set', { %key, value => 1 }), -32603, 'State could not be stored', '... and a change that can not be stored');
	rmdir $file;
	ok(exists ask('all', 'state.set', { %key, value => 'x' x 600_000 })->{result}, '... after which, without the file, there is room again');
	rename "$file.away", $file;
	spew("$data/pg_envrt/plugin_state/reader.json", 'junk');
	refused_with(ask('reader', 'state.get', {%key}), -32603, 'State could not be read', 'a broken file');
	is($host->terminate, 0, 'the host ends in order');
	$host = start_host(plugins => [$path]);
	refused_with(ask('all', 'state.set', { %key, value => 1 }), -32603, 'There is no place to keep state', 'no data directory');
}

# Metrics.
{
	is_deeply($host->call('envrt/pluginMetrics', {})->{result}, { metrics => [] }, 'no metrics');
	ok(exists ask('all', 'metrics.write', { name => 'm', value => $_, tags => { b => 1, a => 2 } })->{result}, "metric $_") for 1, 2.5;
	ok(exists ask('all', 'metrics.write', { name => 'm', value => 7 })->{result}, 'without tags');
	my @metrics = sort { $a->{count} <=> $b->{count} } @{ $host->call('envrt/pluginMetrics', {})->{result}{metrics} };
	cmp_ok(abs(delete($_->{updatedAt}) / 1000 - time), '<', 600, 'it has a time') for @metrics;
	is_deeply(
		\@metrics,
		[
			{ plugin => 'all', name => 'm', tags => {}, last => 7, count => 1, sum => 7 },
			{ plugin => 'all', name => 'm', tags => { a => 2, b => 1 }, last => 2.5, count => 2, sum => 3.5 }
		],
		'metrics');
	refused_with(ask('all', 'metrics.write', { name => 'm', value => 'x' }), -32603, 'Metric value must be a number', 'no number');
	refused_with(ask('all', 'metrics.write', { value => 1 }), -32603, 'Metric name must be a text of 1 to 200 bytes', 'no name');
	refused_with(ask('all', 'metrics.write', { name => 'm', value => 1, tags => [] }),
		-32603, 'Metric tags must be an object of at most 2000 bytes', 'no tags');
	ok(exists ask('all', 'metrics.write', { name => 'nul', value => 1, tags => { a => "b\0c" } })->{result}, 'a tag may hold U+0000');
	is_deeply((grep { $_->{name} eq 'nul' } @{ $host->call('envrt/pluginMetrics', {})->{result}{metrics} })[0]{tags}, { a => "b\0c" }, '... and is there');
	my %told = (name => 'of told-to-all', value => 1, tags => { 'told-to-all' => [ 'it: told-to-all', 1 ] });
	ask('all', 'metrics.write', \%told, secrets => { $id => 'told-to-all' });
	my ($told) = grep { $_->{name} =~ /^of/ } @{ $host->call('envrt/pluginMetrics', {})->{result}{metrics} };
	is($json->encode([ @$told{qw(name tags)} ]), '["of ***********",{"***********":["it: ***********",1]}]', 'no secret shows in a name or a tag');
	my $answers = $host->call('environmentProbe',
		params('all', { ask => [ map { { method => 'metrics.write', params => { name => "m$_", value => $_ } } } 1 .. 300 ] }))->{result};
	is(scalar(grep { exists $_->{result} } @$answers), 196, 'there is a limit of series');
	refused_with($answers->[299], -32603, 'Too many metric series', '... of a plugin');
	is($host->terminate, 0, 'the host ends in order');
}

done_testing();
