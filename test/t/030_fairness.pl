# Companies take turns: one that queues much does not make another's first wait for it.  What is
# asserted is the order in which things were begun, which no load of the machine changes.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use Test::More;
use Time::HiRes qw(time);
use EnvrtFixture qw(wait_until);
use EnvrtTest;

my $queued = 1000;
my $sshd = EnvrtFixture::Sshd->new->start;
# Two executions run at once.
my $node = new_cluster('fairness', conf => "envrt.max_calls = 8\nfsync = off\n");

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

my (%company, %run, %ssh, %local, %lease);
for my $name (qw(busy other))
{
	$company{$name} = make_company($node);
	$run{$name} = make_run($node, $company{$name});
	$ssh{$name} = make_ssh_environment($node, $company{$name}, $sshd);
	$local{$name} = make_environment($node, $company{$name}, 'local', {});
	$lease{$name} = acquire($node, $company{$name}, $ssh{$name}, $run{$name})->{id};
}

# Executions
{
	my $time = time;
	my $one = sql("SELECT envrt_start_execution('$lease{busy}', 'sleep', ARRAY['0.5'])");

	sql("SELECT exit_code FROM envrt_await_execution('$one')");
	my $took = time - $time;

	sql("SELECT count(envrt_start_execution('$lease{busy}', 'sleep', ARRAY['0.5'])) FROM generate_series(1, $queued)");
	wait_until_sql($node, "SELECT EXISTS (SELECT FROM envrt.executions WHERE state = 'running')", 'the first of many to run');
	$time = time;
	my $id = sql("SELECT envrt_start_execution('$lease{other}', 'true')");
	is(sql("SELECT exit_code FROM envrt_await_execution('$id', '3 min')"), '0', "another company's execution is served");
	note sprintf 'in %.1f s, where one command takes %.1f s', time - $time, $took;
	my $before = sql("SELECT count(*) FROM envrt.executions e, envrt.executions o WHERE o.id = '$id'"
		  . " AND e.company_id = '$company{busy}' AND e.started_at BETWEEN o.created_at AND o.started_at");
	note "$before of $queued were begun between its request and its start";
	cmp_ok($before, '<=', 3, "... after a command's time");
	cmp_ok(sql("SELECT count(*) FROM envrt.executions WHERE state = 'queued'"), '>', $queued / 2, '... while the others are queued');
	is(sql("SELECT max(n) FROM (SELECT count(*) AS n FROM envrt.executions WHERE state = 'running' AND company_id = '$company{busy}') r"), '2',
		'a company has no more than its share of the places');
	sql("UPDATE envrt.executions SET cancel_requested_at = now() WHERE state IN ('queued', 'running')");
	sql("SELECT envrt_release_leases('$run{busy}')");
}

# Requests
{
	my $more = make_run($node, $company{busy});

	# One session, so that the other's request comes while the many are hardly begun.
	my $time = time;
	my ($id) = sql("SELECT count(envrt_request_lease('$company{busy}', '$local{busy}', '$more')) FROM generate_series(1, $queued);\n"
		  . "SELECT envrt_request_lease('$company{other}', '$local{other}', '$run{other}')") =~ /\n(\S+)\z/;
	is(sql("SELECT status FROM envrt_await_lease('$id', '3 min')"), 'active', "another company's request is served");
	note sprintf 'in %.1f s', time - $time;
	my $before = sql("SELECT count(*) FROM envrt.environment_leases l, envrt.environment_leases o"
		  . " WHERE o.id = '$id' AND l.company_id = '$company{busy}' AND l.created_at <= o.created_at");
	note "$before of $queued were served before it";
	wait_until_sql($node, "SELECT NOT EXISTS (SELECT FROM envrt.lease_requests)", 'all to be served');
	is(sql("SELECT count(*) FROM envrt.environment_leases WHERE heartbeat_run_id = '$more'"), $queued, 'all others are served as well');
	cmp_ok(sql("SELECT count(*) FROM envrt.environment_leases l, envrt.environment_leases o WHERE o.id = '$id'"
				. " AND l.heartbeat_run_id = '$more' AND l.created_at > o.created_at"), '>', $queued / 2, '... most of them later');
}

# What is asked is answered by an index, however much waits.
{
	my $plan = sql("SET enable_seqscan = off; SET enable_sort = off; EXPLAIN SELECT id FROM envrt.executions"
		  . " WHERE state = 'queued' AND company_id = '$company{busy}' AND (created_at, id) > ('-infinity', '$company{busy}') ORDER BY created_at, id LIMIT 16");
	like($plan, qr/Index.*executions_queued_idx/, 'the next execution of a company is found by an index');
	$plan = sql("SET enable_seqscan = off; SET enable_sort = off; EXPLAIN SELECT lease_id FROM envrt.lease_requests"
		  . " WHERE state = 'queued' AND company_id = '$company{busy}' ORDER BY created_at, lease_id LIMIT 16");
	like($plan, qr/Index.*lease_requests_queued_idx/, '... and the next request');
}

done_testing();
