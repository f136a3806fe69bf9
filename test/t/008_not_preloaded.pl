# Without shared_preload_libraries: what needs no driver host works, the rest says what to do.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use EnvrtTest;

my $node = new_cluster('bare', preload => 0);
my $company = make_company($node);
my $run = make_run($node, $company);
my $local = $node->safe_psql('postgres', "SELECT id FROM envrt_ensure_local_environment('$company')");
my $fake = make_fake_environment($node, $company);
my $config = { host => '127.0.0.1', username => 'u', remoteWorkspacePath => '/w', privateKey => EnvrtFixture::Keys->shared->text('user_ed25519') };
my $ssh = $node->safe_psql('postgres',
	"SELECT id FROM envrt_create_environment('$company', 'ssh', 'ssh', " . literal(to_json($config)) . ')');

is(acquire($node, $company, $local, $run)->{status}, 'active', 'local works');
is(acquire($node, $company, $fake, $run)->{status}, 'active', 'fake works');
is(scalar(release($node, $run)), 2, 'so does release');
for my $sql ("SELECT envrt_acquire_lease('$company', '$ssh', '$run')", "SELECT envrt_probe('$ssh')")
{
	my ($state, $text) = sql_state($node, $sql);

	is($state, '55000', 'ssh is refused');
	like($text, qr/envrt is not preloaded/, 'with the reason');
	like($text, qr/HINT: .*shared_preload_libraries = 'envrt'/, 'and the line for postgresql.conf');
}
is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.environment_leases WHERE status = 'active'"), '0', 'no lease is left');
for my $view (qw(stat_driver_host stat_calls stat_ssh_sessions stat_schedulers))
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM envrt.$view"), '0', "$view is empty");
}
done_testing();
