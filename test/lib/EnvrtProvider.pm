# A provider for tests: the directory of a journal plugin (test/plugins), what is in it, and whether it
# agrees with what the server says.
#
#   use EnvrtTest;
#   use EnvrtProvider;
#
#   my $node = new_cluster('main', conf => EnvrtProvider::conf());
#   my $provider = EnvrtProvider->new;
#   my $environment = $provider->make_environment($node, $company, leasePolicy => 'retain_on_failure');
#   $provider->set_knob('acquire-die-after', 1);
#   is_deeply([ $provider->settled($node) ], [], 'nothing is leaked, lost or held twice');

package EnvrtProvider;

use strict;
use warnings;

use FindBin;
use Time::HiRes qw(sleep time);
use EnvrtFixture qw(temporary_directory slurp spew processes_below);
use EnvrtTest qw(literal from_json);

# What a server's configuration needs; more directories with plugins may be named.
sub conf
{
	my (@more) = @_;

	return 'envrt.plugin_path = ' . literal(join ', ', "$FindBin::RealBin/../plugins", @more) . "\n";
}

# Options: directory (one of its own).
sub new
{
	my ($class, %options) = @_;
	my $self = bless { directory => $options{directory} // temporary_directory() . '/provider' }, $class;

	for my $directory ($self->{directory}, "$self->{directory}/exists", "$self->{directory}/knobs")
	{
		mkdir $directory or -d $directory or die "can't make $directory: $!";
	}
	return $self;
}

# Pairs of the config; provider (journal) may be journal-keyed or journal-blind, or tempdir or
# tempdir-keyed of EnvrtSdk.
sub make_environment
{
	my ($self, $node, $company, %config) = @_;

	return EnvrtTest::make_environment($node, $company, 'sandbox', { provider => 'journal', directory => $self->{directory}, %config });
}

#######################################################################
# The directory
#######################################################################

# Everything that exists, as [leaseId, providerLeaseId].
sub sandboxes
{
	my ($self) = @_;
	my $directory = "$self->{directory}/exists";
	my @found;

	opendir my $handle, $directory or die "can't read $directory: $!";
	for my $name (sort grep { !/^\./ } readdir $handle)
	{
		# It may go while we look.
		open my $file, '<', "$directory/$name" or next;
		my $lease = <$file> // '';
		chomp $lease;
		push @found, [ $lease, $name =~ s{^journal:__}{journal://}r ];
	}
	return @found;
}

# leaseId => providerLeaseId
sub existing
{
	my ($self) = @_;
	my %existing = map { $_->[0] => $_->[1] } $self->sandboxes;

	return \%existing;
}

sub has
{
	my ($self, $provider_lease_id) = @_;

	return -e "$self->{directory}/exists/" . $provider_lease_id =~ s{/}{_}gr;
}

# The lines of the journal as hashes: time, pid, what, lease, id, how (by-release).  With an argument
# those with that lease or providerLeaseId alone.
sub journal
{
	my ($self, $of) = @_;
	my $file = "$self->{directory}/journal";
	my @lines;

	return if !-e $file;
	# The last line may be in the writing.
	for my $line (slurp($file) =~ /^(.*)\n/mg)
	{
		my %line;

		@line{qw(time pid what lease id how)} = split ' ', $line;
		for my $key (qw(lease id))
		{
			$line{$key} = undef if $line{$key} eq '-';
		}
		push @lines, \%line if !defined $of || $of eq ($line{lease} // '') || $of eq ($line{id} // '');
	}
	return @lines;
}

# How often something was done: create, again, resume, release, destroy, destroy-absent.
sub count
{
	my ($self, $what, $of) = @_;

	return scalar grep { $_->{what} eq $what } $self->journal($of);
}

# For one lease alone with an argument more.
sub set_knob
{
	my ($self, $name, $value, $lease) = @_;
	my $knob = "$self->{directory}/knobs/$name";

	# Whoever reads it sees all of it or nothing.
	spew("$knob.new", join ' ', $value // 'always', $lease // ());
	rename "$knob.new", $knob or die "can't rename $knob: $!";
	return;
}

# Those named; all without names.
sub clear_knobs
{
	my ($self, @names) = @_;

	@names = map { s{.*/}{}r } glob "$self->{directory}/knobs/*" if !@names;
	unlink map { "$self->{directory}/knobs/$_" } @names;
	return;
}

#######################################################################
# The processes
#######################################################################

sub driver_host_pid
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SELECT pid FROM envrt.stat_driver_host');
}

# The plugin workers, which the driver host has started.
sub worker_pids
{
	my ($node) = @_;
	my $host = driver_host_pid($node);

	return $host eq '' ? () : processes_below($host);
}

#######################################################################
# Whether all agree
#######################################################################

sub look
{
	my ($self, $server) = @_;
	my $directory = literal($self->{directory});
	my $sql = <<"SQL";
SELECT jsonb_build_object(
    'rows', (SELECT coalesce(jsonb_agg(jsonb_build_object('lease', p.lease_id, 'holder', p.holder_id, 'state', p.state, 'cleanup', p.cleanup,
                'id', p.provider_lease_id, 'policy', p.lease_policy, 'environment', p.environment_id, 'workspace', p.execution_workspace_id,
                'queued', p.next_attempt_at IS NOT NULL, 'error', p.last_error, 'attempts', p.attempts,
                'open', p.owner IS NOT NULL AND pg_xact_status(p.owner) = 'in progress')), '[]')
            FROM envrt.provider_leases p WHERE p.config->>'directory' = $directory),
    'leases', (SELECT coalesce(jsonb_agg(jsonb_build_object('lease', l.id, 'status', l.status, 'cleanup', l.cleanup_status, 'id', l.provider_lease_id)), '[]')
            FROM envrt.environment_leases l WHERE l.metadata->>'directory' = $directory),
    'requests', (SELECT coalesce(jsonb_agg(r.lease_id), '[]') FROM envrt.lease_requests r
            JOIN envrt.environments e ON e.id = r.environment_id
            WHERE r.state = 'queued' AND e.config->>'directory' = $directory
            -- Those may have to wait for a reusable one.
            AND NOT EXISTS (SELECT 1 FROM envrt.provider_leases p WHERE p.environment_id = e.id AND p.state = 'held' AND p.lease_policy LIKE 'reuse%')),
    'foreign', (SELECT coalesce(jsonb_agg(c.lease_id), '[]') FROM envrt.stat_cleanup c WHERE c.made_by = 'foreign'),
    'calls', (SELECT coalesce(sum(h.active_calls), 0) FROM envrt.stat_driver_host h))
SQL

	# A node or a session
	if ($server->isa('EnvrtSession'))
	{
		my $result = $server->run($sql);

		die "can't look: $result->{message}" if $result->{state} ne '00000';
		return from_json($result->{out});
	}
	my ($status, $out, $err) = $server->psql('postgres', $sql);
	die "can't look: $err" if $status != 0;
	return from_json($out);
}

# What is wrong: [a list of problems, whether anything is still under way].
sub problems
{
	my ($self, $server, %options) = @_;
	my $look = $self->look($server);
	my @sandboxes = $self->sandboxes;
	my @problems;
	my $busy = 0;

	# What exists, and the ledger
	my %row = map { $_->{lease} => $_ } @{ $look->{rows} };
	my %found;
	for my $sandbox (@sandboxes)
	{
		my ($lease, $id) = @$sandbox;

		push @problems, "sandbox $id of lease $lease is in no row of the ledger: leaked" if !$row{$lease};
		push @problems, "lease $lease has the sandboxes $found{$lease} and $id" if $found{$lease};
		$found{$lease} = $id;
	}
	my (%holding, %reusable);
	for my $row (@{ $look->{rows} })
	{
		my $name = "row $row->{lease} ($row->{state}, of holder " . ($row->{holder} // 'none') . ')';
		my $has = $found{ $row->{lease} };

		if ($row->{state} eq 'creating')
		{
			$busy = 1;
			push @problems, "$name is still creating" if !$row->{open};
		}
		elsif ($row->{state} eq 'cleaning')
		{
			$busy = 1 if $row->{queued};
			push @problems, "$name is still to be cleaned up: " . ($row->{error} // 'no error') if $options{cleaned};
			push @problems, "$name is given up: " . ($row->{error} // 'no error') if !$row->{queued} && !$options{failed};
		}
		elsif ($row->{state} eq 'unresolved')
		{
			push @problems, "$name is unresolved: $row->{error}" if !$options{unresolved};
		}
		else
		{
			push @problems, "$name has no sandbox: lost" if !defined $has;
			push @problems, "$name is $row->{id}, and what exists is $has" if defined $has && $has ne ($row->{id} // '');
		}
		push @{ $holding{ $row->{holder} } }, $row if defined $row->{holder};
		# What is being destroyed is not going to be used again.
		next if $row->{policy} !~ /^reuse_/ || $row->{state} eq 'unresolved' || $row->{state} eq 'cleaning' && ($row->{cleanup} // '') !~ /keep/;
		my $key = "$row->{environment} " . ($row->{workspace} // '');
		push @problems, "$name is the second reusable one beside $reusable{$key}" if $reusable{$key};
		$reusable{$key} = $row->{lease};
	}

	# The leases, and the ledger
	my %user;
	my %status;
	for my $lease (@{ $look->{leases} })
	{
		my $name = "lease $lease->{lease} ($lease->{status}, cleanup " . ($lease->{cleanup} // 'none') . ')';
		my @rows = @{ $holding{ $lease->{lease} } // [] };

		$status{ $lease->{lease} } = $lease->{status};
		if ($lease->{status} eq 'active' || $lease->{status} eq 'retained')
		{
			my ($row) = @rows;

			push @problems, "$name has no row in the ledger" if !$row;
			push @problems, "$name holds $row->{lease}, which is $row->{state}" if $row && $row->{state} ne 'held';
			push @problems, "$name has $lease->{id}, its row $row->{id}" if $row && ($row->{id} // '') ne ($lease->{id} // '');
			push @problems, "$name and lease $user{ $lease->{id} } hold $lease->{id}: held twice" if defined $lease->{id} && $user{ $lease->{id} };
			$user{ $lease->{id} } = $lease->{lease} if defined $lease->{id};
		}
		elsif (($lease->{cleanup} // '') eq 'pending')
		{
			$busy = 1;
			push @problems, "$name is not queued" if !grep { $_->{state} eq 'cleaning' } @rows;
		}
		elsif (($lease->{cleanup} // '') eq 'failed')
		{
			push @problems, "$name has no row left to clean up" if !@rows;
		}
		else
		{
			push @problems, "$name has ended without a cleanup" if !defined $lease->{cleanup};
			push @problems, "$name still has $rows[0]{lease}" if @rows && $rows[0]{state} ne 'cleaning';
		}
	}
	for my $row (@{ $look->{rows} })
	{
		next if $row->{state} ne 'held';
		my $status = $status{ $row->{holder} } // 'gone';
		push @problems, "row $row->{lease} is held by lease $row->{holder}, which is $status" if $status ne 'active' && $status ne 'retained';
	}
	for my $request (@{ $look->{requests} })
	{
		$busy = 1;
		push @problems, "request $request is still queued" if !$options{requests};
	}
	push @problems, map { "$_ is foreign" } @{ $look->{foreign} } if !$options{foreign};
	push @problems, $self->problems_of_journal($look->{rows});
	$busy = 1 if $look->{calls} > 0;
	return (\@problems, $busy);
}

# The journal can't be wrong at one time and right later, but for the last thing done to each.
sub problems_of_journal
{
	my ($self, $rows) = @_;
	my (%created, %ended, %last, @problems);

	for my $line ($self->journal)
	{
		my ($what, $id) = @$line{qw(what id)};

		next if !defined $id;
		if ($what eq 'create')
		{
			push @problems, "lease $line->{lease} was made twice: $created{ $line->{lease} } and $id" if $created{ $line->{lease} };
			$created{ $line->{lease} } = $id;
			# A name that is given again
			delete $ended{$id};
		}
		push @problems, "$id was destroyed twice" if $what eq 'destroy' && $ended{$id};
		push @problems, "$id: $what after it was destroyed" if $ended{$id} && ($what eq 'resume' || $what eq 'release');
		$ended{$id} = 1 if $what eq 'destroy';
		$last{$id} = $what if $what ne 'destroy-absent';
	}
	for my $row (@$rows)
	{
		my $last = $last{ $row->{id} // '' } // next;

		push @problems, "$row->{id} is held, and was told of its $last last" if $row->{state} eq 'held' && $last !~ /^(create|again|resume)$/;
		push @problems, "$row->{id} is idle, and was told of its $last last" if $row->{state} eq 'idle' && $last ne 'release';
	}
	return @problems;
}

# Waits until all is at rest and well, and returns what is wrong if that does not come: what exists
# that the ledger does not know, or the other way round, rows that nobody decides about, leases without
# what they hold, ended ones that nobody cleans up, what is held, made, released or destroyed twice.
#
# The server is a node, or an EnvrtSession, which is faster.
#
# Options: timeout (10 s), cleaned (a cleanup that is queued is a problem too), unresolved, failed,
# foreign, requests (these are none).
sub settled
{
	my ($self, $server, %options) = @_;
	my $deadline = time + ($options{timeout} // 10);
	my $well = 0;

	while (1)
	{
		my ($problems, $busy) = eval { $self->problems($server, %options) };

		# The server may be on its way back.
		($problems, $busy) = ([$@], 1) if $@;
		# Twice, since something that comes late must be seen.
		$well = @$problems || $busy ? 0 : $well + 1;
		return () if $well == 2;
		return @$problems if time > $deadline;
		sleep($well ? 0.1 : 0.03);
	}
}

1;
