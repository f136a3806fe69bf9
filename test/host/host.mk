# The driver host's own tests; included by the Makefile.
#
#   check-host   unit tests, and the host against real and misbehaving servers; all of it twice,
#                the second time with a host under the sanitizers.  With -j2 both run at once: they
#                mostly wait
#   check-hostile  the host under a hostile client, for a minute
#   check-ssh-servers  10,000 commands of 20 clients at a time against each of OpenSSH, dropbear and
#                tinyssh; some minutes

HOST_SANITIZED = build/host-address-undefined/$(HOST)

build/test_host_units: test/host/test_units.c $(HOST_SOURCES) $(SHARED_SOURCES) $(TEST_HEADERS)
	@mkdir -p build
	$(CC) $(TEST_CFLAGS) -o $@ $< $(filter-out src/host/main.c,$(HOST_SOURCES)) $(SHARED_SOURCES) $(TEST_LIBS)

build/bad_sshd: test/host/bad_sshd.c
	@mkdir -p build
	$(CC) -std=gnu11 -g -O1 -D_GNU_SOURCE $(TEST_WARNINGS) -o $@ $< -lssh

# For a minute, what check-host does for some seconds.
.PHONY: check-hostile
check-hostile: $(HOST)
	ENVRT_HOSTILE_SECONDS=60 $(PROVE) --exec '' -v test/host/hostile_client.t

.PHONY: check-ssh-servers
check-ssh-servers: $(HOST)
	$(PROVE) --exec '' -v test/host/ssh_servers_load.pl

.PHONY: check-host check-host-plain check-host-sanitized sanitized-host
sanitized-host:
	$(MAKE) SANITIZE=address,undefined $(HOST_SANITIZED)

check-host: check-host-plain check-host-sanitized

check-host-plain: $(HOST) build/test_host_units build/bad_sshd
	$(PROVE) --exec '' $(PROVE_FLAGS) build/test_host_units test/host/*.t

# From the end, so that no test meets itself.
check-host-sanitized: sanitized-host build/bad_sshd
	ENVRT_DRIVER_HOST='$(CURDIR)/$(HOST_SANITIZED)' $(PROVE) --exec '' --reverse $(PROVE_FLAGS) test/host/*.t
