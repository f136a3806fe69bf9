/*
 * test_units.c
 *		The driver host's parts that need no server: known_hosts, private keys,
 *		allowed hosts, the remote scripts, plugins' manifests, the delay of their
 *		workers, what is known of leases, the mask of their secrets, and text made
 *		safe.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libssh/libssh.h>
#include <sodium.h>

#include "ssh/allowed_hosts.h"
#include "calls/execute_request.h"
#include "base/fair_queue.h"
#include "ssh/glob.h"
#include "base/host_error.h"
#include "ssh/known_hosts.h"
#include "base/latency.h"
#include "calls/lease_keys.h"
#include "base/memory.h"
#include "plugins/plugin_manifest.h"
#include "sandbox/sandbox_cgroup.h"
#include "sandbox/sandbox_lease_folder.h"
#include "calls/secret_mask.h"
#include "ssh/ssh_execute_script.h"
#include "ssh/ssh_key.h"
#include "ssh/ssh_acquire_script.h"
#include "tap.h"
#include "base/worker_backoff.h"

static ssh_key keys[3];
static char *lines[3]; /* "type base64" */

static void
make_keys(void)
{
	static const enum ssh_keytypes_e types[] = {SSH_KEYTYPE_ED25519, SSH_KEYTYPE_ED25519,
	                                            SSH_KEYTYPE_ECDSA_P256};

	for (int i = 0; i < 3; i++)
	{
		char *base64 = NULL;

		if (ssh_pki_generate(types[i], 256, &keys[i]) != SSH_OK ||
		    ssh_pki_export_pubkey_base64(keys[i], &base64) != SSH_OK)
			abort();
		lines[i] = xformat("%s %s", ssh_key_type_to_char(ssh_key_type(keys[i])), base64);
		ssh_string_free_char(base64);
	}
}

/* %1, %2 and %3 in the text stand for the keys. */
static char *
with_keys(const char *text)
{
	Bytes bytes = {0};

	for (; *text != '\0'; text++)
	{
		if (text[0] == '%' && text[1] >= '1' && text[1] <= '3')
			bytes_append_text(&bytes, lines[*++text - '1']);
		else
			bytes_append(&bytes, text, 1);
	}
	bytes_append(&bytes, "", 0);
	return bytes.data;
}

/* What is said of the first key. */
static void
verdict(const char *text, const char *host, int port, HostKeyVerdict expected, const char *name)
{
	char *real = with_keys(text);
	KnownHosts *known = known_hosts_parse(real, host, port);
	HostKeyVerdict got = known_hosts_check(known, keys[0]);

	if (!ok(got == expected, "known_hosts: %s", name))
		printf("# got %d, expected %d\n", (int) got, (int) expected);
	known_hosts_free(known);
	free(real);
}

static void
test_known_hosts(void)
{
	char *hashed;
	KnownHosts *known;
	char *text;

	verdict("host.example %1\n", "host.example", 22, HOST_KEY_KNOWN, "a plain line");
	verdict("host.example %1", "host.example", 22, HOST_KEY_KNOWN, "no newline at the end");
	verdict("host.example %1 a comment\r\n", "host.example", 22, HOST_KEY_KNOWN, "a comment, CRLF");
	verdict("  host.example\t%1\n", "host.example", 22, HOST_KEY_KNOWN, "blanks and a tab");
	verdict("HOST.example %1\n", "host.EXAMPLE", 22, HOST_KEY_KNOWN, "case is ignored");
	verdict("# host.example %1\n", "host.example", 22, HOST_KEY_UNKNOWN,
	        "a line that is a comment");
	verdict("", "host.example", 22, HOST_KEY_UNKNOWN, "nothing");
	verdict("other.example %1\n", "host.example", 22, HOST_KEY_UNKNOWN, "another host");
	verdict("host.example %2\n", "host.example", 22, HOST_KEY_CHANGED, "another key");
	verdict("host.example %3\n", "host.example", 22, HOST_KEY_OTHER_TYPE, "another type");
	verdict("host.example %3\nhost.example %2\n", "host.example", 22, HOST_KEY_CHANGED,
	        "another key and another type");
	verdict("host.example %2\nhost.example %1\n", "host.example", 22, HOST_KEY_KNOWN,
	        "one of several keys");
	verdict("a,host.example,b %1\n", "host.example", 22, HOST_KEY_KNOWN, "a list of names");
	verdict("*.example %1\n", "host.example", 22, HOST_KEY_KNOWN, "a wildcard");
	verdict("h?st.example %1\n", "host.example", 22, HOST_KEY_KNOWN, "a question mark");
	verdict("*,!host.example %1\n", "host.example", 22, HOST_KEY_UNKNOWN, "a name ruled out after");
	verdict("!host.example,* %1\n", "host.example", 22, HOST_KEY_UNKNOWN,
	        "a name ruled out before");
	verdict("!other.example,* %1\n", "host.example", 22, HOST_KEY_KNOWN, "another name ruled out");
	verdict("!host.example %1\n", "other.example", 22, HOST_KEY_UNKNOWN, "only a name ruled out");
	verdict("[host.example]:2222 %1\n", "host.example", 2222, HOST_KEY_KNOWN, "a port");
	verdict("[host.example]:2222 %1\n", "host.example", 22, HOST_KEY_UNKNOWN, "another port");
	verdict("[host.example]:22 %1\n", "host.example", 22, HOST_KEY_KNOWN, "port 22 in brackets");
	verdict("host.example %1\n", "host.example", 2222, HOST_KEY_UNKNOWN, "a line without the port");
	verdict("[*.example]:* %1\n", "host.example", 2222, HOST_KEY_KNOWN, "wildcards with a port");
	verdict("::1 %1\n", "::1", 22, HOST_KEY_KNOWN, "an IPv6 address");
	verdict("[::1]:2222 %1\n", "::1", 2222, HOST_KEY_KNOWN, "an IPv6 address with a port");
	verdict("@revoked * %1\n", "host.example", 22, HOST_KEY_REVOKED, "revoked");
	verdict("host.example %1\n@revoked * %1\n", "host.example", 22, HOST_KEY_REVOKED,
	        "known and revoked after");
	verdict("@revoked * %1\nhost.example %1\n", "host.example", 22, HOST_KEY_REVOKED,
	        "known and revoked before");
	verdict("@revoked * %2\nhost.example %1\n", "host.example", 22, HOST_KEY_KNOWN,
	        "another key revoked");
	verdict("@revoked * %2\n", "host.example", 22, HOST_KEY_UNKNOWN, "only another key revoked");
	verdict("@cert-authority * %2\n", "host.example", 22, HOST_KEY_ONLY_AUTHORITY, "an authority");
	verdict("@cert-authority * %1\n", "host.example", 22, HOST_KEY_ONLY_AUTHORITY,
	        "an authority's own key is no host key");
	verdict("@cert-authority * %2\nhost.example %1\n", "host.example", 22, HOST_KEY_KNOWN,
	        "an authority and the key");
	verdict("@cert-authority * %2\nhost.example %2\n", "host.example", 22, HOST_KEY_CHANGED,
	        "an authority and another key");
	verdict("@strange * %1\n", "host.example", 22, HOST_KEY_UNKNOWN, "a marker nobody knows");
	verdict("host.example ssh-ed25519 rubbish\n", "host.example", 22, HOST_KEY_UNREADABLE,
	        "a line that can't be read");
	verdict("host.example ssh-strange AAAA\nhost.example %1\n", "host.example", 22, HOST_KEY_KNOWN,
	        "a line that can't be read and one that can");
	verdict("host.example\nhost.example ssh-ed25519\n", "host.example", 22, HOST_KEY_UNKNOWN,
	        "lines that are cut short");

	hashed = xstrdup("|1|MDEyMzQ1Njc4OWFiY2RlZmdoaWo=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= %1\n");
	verdict(hashed, "host.example", 22, HOST_KEY_UNKNOWN, "a hash of another name");
	free(hashed);
	verdict("|1|rubbish %1\n|1| %1\n|1|||| %1\n", "host.example", 22, HOST_KEY_UNKNOWN,
	        "hashes that can't be read");

	text = with_keys("host.example %3\n@revoked host.example %1\n");
	known = known_hosts_parse(text, "host.example", 22);
	free(text);
	text = known_hosts_algorithms(known);
	is(text,
	   "ecdsa-sha2-nistp256,ssh-ed25519,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,"
	   "rsa-sha2-256",
	   "known_hosts: known types come first");
	free(text);
	text = known_hosts_types(known);
	is(text, "ecdsa-sha2-nistp256", "known_hosts: the known types");
	free(text);
	known_hosts_free(known);
}

static void
test_keys(void)
{
	char *pem = NULL;
	char *public_key;
	char *text;
	HostError *error;
	ssh_key key;

	if (ssh_pki_export_privkey_base64(keys[0], NULL, NULL, NULL, &pem) != SSH_OK)
		abort();
	key = ssh_key_from_text(pem, &error);
	ok(key != NULL && ssh_key_cmp(key, keys[0], SSH_KEY_CMP_PUBLIC) == 0, "keys: a plain one");
	ssh_key_free(key);
	text = xformat("a line before\r\n\r\n%sa line after", pem);
	key = ssh_key_from_text(text, &error);
	ok(key != NULL, "keys: lines before and after");
	ssh_key_free(key);
	free(text);
	public_key = xstrdup(lines[0]);
	key = ssh_key_from_text(public_key, &error);
	ok(key == NULL && strcmp(error->sqlstate, "22023") == 0 &&
	       strstr(error->message, "public key") != NULL,
	   "keys: a public one");
	error_free(error);
	free(public_key);
	text = xformat("%sssh-ed25519-cert-v01@openssh.com rubbish\n", pem);
	key = ssh_key_from_text(text, &error);
	ok(key == NULL && strstr(error->message, "certificate") != NULL,
	   "keys: a certificate that can't be read");
	error_free(error);
	free(text);
	pem[strlen(pem) / 2] = '!';
	key = ssh_key_from_text(pem, &error);
	ok(key == NULL && strcmp(error->sqlstate, "22023") == 0, "keys: a damaged one");
	ok(strstr(error->message, "AAAA") == NULL, "keys: ... of which nothing is told");
	error_free(error);
	ssh_string_free_char(pem);
}

static bool
allows(const char *list, const char *address)
{
	json_t *entries = json_loads(list, 0, NULL);
	AllowedHosts *allowed = allowed_hosts_new(entries);
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	bool result;

	if (inet_pton(AF_INET, address, &v4.sin_addr) == 1)
		result = allowed_hosts_address(allowed, (struct sockaddr *) &v4);
	else if (inet_pton(AF_INET6, address, &v6.sin6_addr) == 1)
		result = allowed_hosts_address(allowed, (struct sockaddr *) &v6);
	else
		result = allowed_hosts_name(allowed, address);
	allowed_hosts_free(allowed);
	json_decref(entries);
	return result;
}

static void
test_allowed_hosts(void)
{
	ok(allows("[]", "10.0.0.1") && allows("[]", "host"), "allowed hosts: an empty list");
	ok(allows("[\"10.0.0.0/8\"]", "10.255.0.1"), "allowed hosts: in the block");
	ok(!allows("[\"10.0.0.0/8\"]", "11.0.0.1"), "allowed hosts: outside of it");
	ok(allows("[\"10.0.0.128/25\"]", "10.0.0.129") && !allows("[\"10.0.0.128/25\"]", "10.0.0.127"),
	   "allowed hosts: a block that ends within a byte");
	ok(allows("[\"10.0.0.1\"]", "10.0.0.1") && !allows("[\"10.0.0.1\"]", "10.0.0.2"),
	   "allowed hosts: one address");
	ok(allows("[\"10.0.0.0/8\"]", "::ffff:10.0.0.1"), "allowed hosts: IPv4 in IPv6 form");
	ok(!allows("[\"::/0\"]", "10.0.0.1") && allows("[\"::/0\"]", "fe80::1"),
	   "allowed hosts: all of IPv6 is none of IPv4");
	ok(allows("[\"fd00::/8\"]", "fd12::1") && !allows("[\"fd00::/8\"]", "fe80::1"),
	   "allowed hosts: an IPv6 block");
	ok(!allows("[\"10.0.0.0/33\"]", "10.0.0.1") && !allows("[\"10.0.0.0/x\"]", "10.0.0.1"),
	   "allowed hosts: a block that is none allows nothing");
	ok(!allows("[5]", "10.0.0.1") && !allows("[5]", "host"),
	   "allowed hosts: an entry that is no text");
	ok(allows("[\"*.example\"]", "a.example") && !allows("[\"*.example\"]", "example"),
	   "allowed hosts: a pattern");
	ok(glob_match("*a*b*", "xxaxxbxx") && !glob_match("*a*b*", "xxbxxaxx"), "patterns: two stars");
	ok(glob_match("[h]:*", "[h]:22"), "patterns: brackets are themselves");
}

/* Runs a command line by a shell, as a server does, with what it is to read. */
static void
run(const char *shell, const char *command_line, const Bytes *input, Bytes *output)
{
	int ends[2];
	int file = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	char buffer[4096];
	ssize_t count;
	pid_t pid;

	if (file < 0 || write(file, input->data, input->length) != (ssize_t) input->length ||
	    lseek(file, 0, SEEK_SET) != 0 || pipe(ends) < 0 || (pid = fork()) < 0)
		abort();
	if (pid == 0)
	{
		dup2(file, STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		/* The script's marker on stderr is for another test. */
		dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
		close(ends[0]);
		close(ends[1]);
		execl(shell, shell, "-c", command_line, (char *) NULL);
		_exit(127);
	}
	close(ends[1]);
	close(file);
	while ((count = read(ends[0], buffer, sizeof buffer)) > 0)
		bytes_append(output, buffer, (size_t) count);
	close(ends[0]);
	waitpid(pid, NULL, 0);
}

static void
test_script(void)
{
	static const char *const shells[] = {"/bin/sh",        "/bin/bash",     "/bin/dash",
	                                     "/usr/bin/zsh",   "/usr/bin/fish", "/usr/bin/mksh",
	                                     "/usr/bin/ksh93", "/usr/bin/tcsh", "/bin/csh"};
	static const char *const paths[] = {"plain",      "it's",      "\"double\"",    "a  b",
	                                    "line\nline", "$HOME`id`", "back\\slash\\", "-dash",
	                                    "\xc3\xbc",   "*?[x]",     "'\\''\\\\'",    "end\n"};
	char directory[] = "/tmp/envrt-units-XXXXXX";
	char marker[SSH_SCRIPT_MARKER_SIZE];
	char *line;
	char *command;

	if (mkdtemp(directory) == NULL)
		abort();
	ssh_script_marker(marker);
	for (size_t s = 0; s < sizeof shells / sizeof shells[0]; s++)
	{
		if (access(shells[s], X_OK) != 0)
			continue;
		for (size_t p = 0; p < sizeof paths / sizeof paths[0]; p++)
		{
			Bytes input = {0};
			Bytes output = {0};
			ScriptAnswer answer;
			char *path = xformat("%s/%s", directory, paths[p]);
			char *shown = clean_text(paths[p], strlen(paths[p]), 100, false);

			line = ssh_execute_command_line(marker);
			ssh_script_input(path, 5, NULL, 0, &input);
			run(shells[s], line, &input, &output);
			ssh_script_parse(marker, &output, 0, &answer);
			ok(answer.outcome == SCRIPT_PATH && answer.cwd != NULL && strcmp(answer.cwd, path) == 0,
			   "script: %s with path %s", shells[s], shown);
			ssh_script_answer_clear(&answer);
			bytes_free(&input);
			bytes_free(&output);
			free(line);
			free(path);
			free(shown);
		}
	}
	command = xformat("rm -r %s", directory);
	ok(system(command) == 0, "script: the paths were made in the directory");
	free(command);
}

static ScriptAnswer
parse(const char *text, size_t candidates)
{
	Bytes output = {0};
	ScriptAnswer answer;

	bytes_append_text(&output, text);
	ssh_script_parse("M", &output, candidates, &answer);
	bytes_free(&output);
	return answer;
}

static void
outcome(const char *text, size_t candidates, ScriptOutcome expected, const char *name)
{
	ScriptAnswer answer = parse(text, candidates);

	ok(answer.outcome == expected, "answer: %s", name);
	ssh_script_answer_clear(&answer);
}

static void
test_answers(void)
{
	ScriptAnswer answer;

	outcome("M cwd\n/x\nM api skip\nM end\n", 0, SCRIPT_PATH, "a path");
	outcome("hello\nM cwd\n/x\nM api 1\nM end\nbye", 2, SCRIPT_API, "noise around it");
	outcome("no newlineM cwd\n/x\nM api skip\nM end\n", 0, SCRIPT_PATH, "noise on its line");
	outcome("M cwd\n/x\nM api 2\nM end\n", 2, SCRIPT_NO_API, "a candidate that was not given");
	outcome("M cwd\n/x\nM api none\nM end\n", 2, SCRIPT_NO_API, "no candidate");
	outcome("M cwd\n/x\nM api nocurl\nM end\n", 2, SCRIPT_NO_CURL, "no curl");
	outcome("M cwd\n/x\nM api skip\nM end\n", 2, SCRIPT_NO_API, "candidates skipped");
	outcome("M fail 1\nM end\n", 0, SCRIPT_NO_PATH, "no path");
	outcome("M cwd\n/x\nM api skip\n", 0, SCRIPT_NO_ANSWER, "no end");
	outcome("M cwd\n/x\nM api skip\nM endless\n", 0, SCRIPT_NO_ANSWER, "an end that is none");
	outcome("M cwd\n\nM api skip\nM end\n", 0, SCRIPT_NO_ANSWER, "an empty path");
	outcome("M cwd\nM api skip\nM end\n", 0, SCRIPT_NO_ANSWER, "no path at all");
	outcome("M end\n", 0, SCRIPT_NO_ANSWER, "nothing but the end");
	outcome("", 0, SCRIPT_NO_ANSWER, "nothing");
	answer = parse("M cwd\n/a\nb\n\nM api skip\nM end\n", 0);
	is(answer.cwd, "/a\nb\n", "answer: a path with line breaks");
	ssh_script_answer_clear(&answer);
}

static void
clean(const char *text, size_t max, bool keep_lines, const char *expected, const char *name)
{
	char *got = clean_text(text, strlen(text), max, keep_lines);

	is(got, expected, name);
	free(got);
}

static void
test_text(void)
{
	clean("plain", 100, false, "plain", "text: plain");
	clean(" \n a\tb\nc \n", 100, false, "a b c", "text: one line");
	clean("a\nb\n", 100, true, "a\nb", "text: lines");
	clean("a\x1b[31mb\x07", 100, true, "a[31mb", "text: control characters go");
	clean("a\xc2\x9b"
	      "b",
	      100, true, "ab", "text: also those beyond ASCII");
	clean("a\xff\xc3", 100, true, "a\xef\xbf\xbd\xef\xbf\xbd", "text: what is no UTF-8");
	clean("\xed\xa0\x80", 100, true, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", "text: a surrogate");
	clean("\xc0\xaf", 100, true, "\xef\xbf\xbd\xef\xbf\xbd", "text: an overlong form");
	clean("\xc3\xbc\xc3\xbc", 3, true, "\xc3\xbc", "text: cut between characters");
}

/* NULL: the manifest is fine. */
static void
manifest(const char *text, const char *expected, const char *name)
{
	char *problem = NULL;
	char *id = NULL;
	PluginManifest *parsed = plugin_manifest_parse("/p", text, strlen(text), &problem, &id);

	if (expected == NULL)
		ok(parsed != NULL && problem == NULL, "manifest: %s", name);
	else
		ok(parsed == NULL && problem != NULL && strstr(problem, expected) != NULL, "manifest: %s",
		   name);
	if (parsed != NULL)
		plugin_manifest_free(parsed);
	free(problem);
	free(id);
}

#define MANIFEST(worker, rest)                                                                     \
	"{\"id\":\"i\",\"version\":\"1\",\"entrypoints\":{\"worker\":\"" worker "\"}" rest "}"
#define DRIVERS(list)                                                                              \
	",\"capabilities\":[\"x\",\"environment.drivers.register\"],\"environmentDrivers\":[" list "]"

static void
test_manifests(void)
{
	static const char full[] =
	    MANIFEST("dist/w.mjs", DRIVERS("{\"driverKey\":\"a\",\"kind\":\"sandbox_provider\","
	                                   "\"acceptsLeaseId\":true},"
	                                   "{\"driverKey\":\"b\",\"kind\":\"environment_driver\"}"));
	char *problem = NULL;
	char *id = NULL;
	PluginManifest *parsed = plugin_manifest_parse("/p", full, strlen(full), &problem, &id);
	const PluginDriver *driver;

	ok(parsed != NULL, "manifest: one with everything");
	if (parsed != NULL)
	{
		is(parsed->worker, "/p/dist/w.mjs", "manifest: the worker's path");
		ok(parsed->node, "manifest: for node");
		driver = plugin_manifest_driver(parsed, "a");
		ok(driver != NULL && driver->sandbox_provider && driver->accepts_lease_id,
		   "manifest: a provider");
		driver = plugin_manifest_driver(parsed, "b");
		ok(driver != NULL && !driver->sandbox_provider && !driver->accepts_lease_id,
		   "manifest: a driver");
		ok(plugin_manifest_driver(parsed, "c") == NULL, "manifest: no other");
		plugin_manifest_free(parsed);
	}
	manifest(MANIFEST("w", ""), NULL, "no drivers");
	manifest(MANIFEST("..w/w..", ""), NULL, "dots that are names");
	manifest(MANIFEST("./a//b/w", ""), NULL, "odd, but inside");
	manifest(MANIFEST("..", ""), "within the folder", "above");
	manifest(MANIFEST("a/..", ""), "within the folder", "above, at the end");
	manifest(MANIFEST("../w", ""), "within the folder", "above, at the start");
	manifest(MANIFEST("a//../../w", ""), "within the folder", "above, in the middle");
	manifest(MANIFEST("/w", ""), "within the folder", "absolute");
	manifest(MANIFEST("", ""), "entrypoints.worker is missing", "empty");
	manifest(MANIFEST("a\\nb", ""), "entrypoints.worker is missing", "a line break");
	manifest(MANIFEST("w", ",\"environmentDrivers\":[{}]"),
	         "Capability 'environment.drivers.register' is required when environmentDrivers are "
	         "declared",
	         "no capability");
	manifest(MANIFEST("w", DRIVERS("{}")), "has no driverKey", "a driver that is none");
	manifest(MANIFEST("w", DRIVERS("1")), "has no driverKey", "a driver that is a number");
	manifest(MANIFEST("w", DRIVERS("{\"driverKey\":\"A\"}")), "Environment driver key must start",
	         "a driver key with capitals");
	manifest(MANIFEST("w", DRIVERS("{\"driverKey\":\"a\",\"kind\":null}")), "is neither",
	         "a kind that is null");
	manifest(MANIFEST("w", DRIVERS("{\"driverKey\":\"a\"}")), NULL, "the usual kind");
	manifest(MANIFEST("w", DRIVERS("{\"driverKey\":\"a\"},{\"driverKey\":\"a\"}")),
	         "Duplicate environment driver keys: a", "a driver twice");
	manifest(MANIFEST("w", DRIVERS("{\"driverKey\":\"a\",\"configSchema\":[]}")),
	         "configSchema of environment driver \"a\" is no object", "a schema that is none");
	manifest(MANIFEST("w", ",\"capabilities\":[7]"), "capabilities is no list",
	         "a capability that is a number");
	manifest(MANIFEST("w", ",\"capabilities\":{}"), "capabilities is no list",
	         "capabilities that are no list");
	manifest(MANIFEST("w", ",\"apiVersion\":2"), "apiVersion is not 1", "another protocol");
	manifest(MANIFEST("w", ",\"displayName\":\"a\\u0000\""), "line 1", "a NUL");
	manifest(MANIFEST("w", ",\"displayName\":7"), "displayName is no text", "an odd name");
	manifest("{\"id\":\"../x\"}", "Plugin id must start", "an id that is a path");
	manifest("", "line 1", "empty text");
}

/* Crashes after so many seconds of life; returns the delay, without its jitter, in ms. */
static uint64_t
crash(WorkerBackoff *backoff, uint64_t *now, uint64_t life)
{
	*now += worker_backoff_delay(backoff, *now);
	worker_backoff_started(backoff, *now);
	*now += life * 1000;
	worker_backoff_crashed(backoff, *now, 500);
	return worker_backoff_delay(backoff, *now);
}

static void
test_backoff(void)
{
	WorkerBackoff backoff = {0};
	uint64_t now = 1000000;

	ok(worker_backoff_delay(&backoff, now) == 0, "backoff: none at first");
	ok(crash(&backoff, &now, 0) == 0, "backoff: none after the first crash");
	ok(crash(&backoff, &now, 0) == 2000, "backoff: after the second");
	ok(crash(&backoff, &now, 9) == 4000, "backoff: after the third");
	ok(crash(&backoff, &now, 11) == 0, "backoff: none after a longer life");
	ok(crash(&backoff, &now, 0) == 16000, "backoff: which does not end the row");
	for (int i = 0; i < 10; i++)
		crash(&backoff, &now, 0);
	ok(crash(&backoff, &now, 0) == 300000, "backoff: never more than five minutes");
	ok(crash(&backoff, &now, 0) == 300000, "backoff: nor after more crashes");
	ok(crash(&backoff, &now, 61) == 0, "backoff: none after a minute");
	ok(crash(&backoff, &now, 0) == 2000, "backoff: from the start again");
	now += 100000;
	ok(crash(&backoff, &now, 0) == 0, "backoff: forgiven when nobody needed it");
	worker_backoff_started(&backoff, now);
	worker_backoff_crashed(&backoff, now, 0);
	ok(worker_backoff_delay(&backoff, now) == 1500, "backoff: a quarter less");
	now += 1500;
	worker_backoff_started(&backoff, now);
	worker_backoff_crashed(&backoff, now, 1000);
	ok(worker_backoff_delay(&backoff, now) == 5000, "backoff: a quarter more");
}

/* Learns something about many keys, which nobody then holds. */
static void
learn(const char *prefix, int count, LeaseKnowledge knowledge, uint64_t now)
{
	for (int i = 0; i < count; i++)
	{
		char *id = xformat("%s%d", prefix, i);
		LeaseKey *key = lease_key_pin(id);

		if (knowledge == LEASE_ENDED)
			lease_key_ended(key, "destroyed");
		else
			lease_key_learn(key, knowledge, json_object());
		lease_key_unpin(key, now);
		free(id);
	}
}

static LeaseKnowledge
known(const char *id, uint64_t now)
{
	LeaseKey *key = lease_key_pin(id);
	LeaseKnowledge knowledge = key->knowledge;

	lease_key_unpin(key, now);
	return knowledge;
}

static void
test_lease_keys(void)
{
	LeaseKey *key = lease_key_pin("a");

	ok(key->knowledge == LEASE_UNSEEN, "leases: unseen at first");
	ok(lease_key_pin("a") == key, "leases: one for a key");
	lease_key_unpin(key, 0);
	ok(lease_keys_count() == 1, "leases: pinned");
	lease_key_unpin(key, 0);
	ok(lease_keys_count() == 0, "leases: nothing known, nothing kept");

	learn("held", 1000, LEASE_HELD, 0);
	ok(lease_keys_count() == 1000 && known("held999", 0) == LEASE_HELD, "leases: many");
	learn("held", 990, LEASE_ENDED, 1000);
	ok(known("held0", 1000) == LEASE_ENDED && known("held995", 1000) == LEASE_HELD,
	   "leases: some ended");
	learn("late", 1, LEASE_ABSENT, 600500);
	ok(lease_keys_count() == 1001, "leases: tombstones stay for ten minutes");
	learn("later", 1, LEASE_ABSENT, 601001);
	ok(lease_keys_count() == 12, "leases: and no longer");
	ok(known("held995", 601001) == LEASE_HELD, "leases: what is held stays");

	lease_keys_set_max(100);
	learn("x", 200, LEASE_ENDED, 601002);
	ok(lease_keys_count() == 110, "leases: so many tombstones, and what is held");
	ok(known("x0", 601002) == LEASE_UNSEEN && known("x199", 601002) == LEASE_ENDED,
	   "leases: the oldest go first");
	ok(lease_keys_are_complete(), "leases: nothing is forgotten that matters");
	learn("y", 91, LEASE_UNKNOWN, 601003);
	ok(lease_keys_count() == 200 && !lease_keys_are_complete(),
	   "leases: what matters is forgotten at last, and known to be");
	lease_keys_clear();
	ok(lease_keys_count() == 0, "leases: all gone");
}

static json_int_t
latency_of(const char *driver, const char *key)
{
	json_t *list = latencies_describe();
	json_int_t value = -1;
	size_t index;
	json_t *row;

	json_array_foreach(list, index, row)
	{
		const char *name = json_string_value(json_object_get(row, "driver"));

		if (strcmp(name ? name : "none", driver) == 0)
			value = json_integer_value(json_object_get(row, key));
	}
	json_decref(list);
	return value;
}

static void
test_latency(void)
{
	char name[16];

	for (uint64_t i = 1; i <= 1000; i++)
		latency_note("a", "execute", i * 1000, i % 10 == 0);
	ok(latency_of("a", "calls") == 1000 && latency_of("a", "errors") == 100, "latency: counts");
	ok(latency_of("a", "totalUs") == 500500000 && latency_of("a", "maxUs") == 1000000, "... sums");
	ok(latency_of("a", "p50Us") >= 500000 && latency_of("a", "p50Us") < 500000 * 9 / 8,
	   "... the median");
	ok(latency_of("a", "p95Us") >= 950000 && latency_of("a", "p99Us") <= 1000000,
	   "... percentiles, never longer than the longest");
	/* Every bucket's ends. */
	for (uint64_t time = 1; time < (uint64_t) 1 << 39; time = time * 9 / 8 + 1)
	{
		latencies_close();
		latency_note(NULL, "one", time, false);
		latency_note(NULL, "one", time * 2, false);
		if (latency_of("none", "p50Us") < (json_int_t) time ||
		    latency_of("none", "p50Us") > (json_int_t) (time + time / 8))
			ok(false, "latency: %llu us", (unsigned long long) time);
	}
	latency_note(NULL, "one", UINT64_MAX, true);
	ok(latency_of("none", "calls") == 3, "latency: for ever");
	for (int i = 0; i < 1000; i++)
	{
		snprintf(name, sizeof name, "d%d", i);
		latency_note(name, "one", 5, false);
	}
	ok(latency_of("d0", "calls") == 1 && latency_of("d999", "calls") == -1 &&
	       latency_of("other", "calls") == 801,
	   "latency: only so many rows");
	latencies_close();
	ok(latency_of("other", "calls") == -1, "latency: all gone");
}

/* Feeds text to the start of a command in pieces, and returns what is the command's own. */
static char *
own_output(ExecuteStart *start, bool is_stderr, const char *text, size_t piece)
{
	Bytes own = {0};

	bytes_append(&own, "", 0);
	for (size_t left = strlen(text); left > 0;)
	{
		size_t length = left < piece ? left : piece;
		/* A copy, so that the sanitizer sees who reads too far. */
		char *copy = xcalloc(1, length);
		const char *rest;
		size_t count = length;

		memcpy(copy, text, length);
		rest = ssh_execute_start_take(start, is_stderr, copy, &count);
		if (count > length)
		{
			bytes_append_text(&own, "(more than there is)");
			count = 0;
		}
		bytes_append(&own, rest, count);
		free(copy);
		text += length;
		left -= length;
	}
	return own.data;
}

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

static void
test_execute_start(void)
{
	static const char line[] = "envrt-12 start ";

	for (size_t piece = 1; piece < 80; piece += 13)
	{
		ExecuteStart start = {.marker = "envrt-12", .given = true};
		char *out = own_output(&start, false,
		                       "Hi envrt-1 envrt-12 \n$envrt_m ready 1\nenvrt-12\nenvrt-12 ready "
		                       "1\nsaid\nenvrt-12 out\n"
		                       "out\nenvrt-12 out\n",
		                       piece);
		char *errors = own_output(&start, true,
		                          "+ sh envrt-12\nenvrt-12 ready 2\nenvrt-12 read\nenvrt-12 x\n"
		                          "envrt-12 start -77 held\nerr",
		                          piece);
		char *line;

		ok(strcmp(out, "out\nenvrt-12 out\n") == 0, "execute: stdout in pieces of %zu", piece);
		ok(strcmp(errors, "err") == 0, "... stderr");
		ok(ssh_execute_start_is_ready(&start), "... it was ready");
		ok(start.state == START_DONE && start.group && start.pid == 77 && start.held,
		   "... the process group");
		line = ssh_execute_start_words(&start, true, NULL);
		is(line, "+ sh envrt-12\nenvrt-12 x", "... what came before");
		free(line);
		line = ssh_execute_kill_line(&start, "TERM");
		is(line, "exec sh -c 'unset -f kill; kill -TERM -77'", "... how to end it");
		free(line);
		free(out);
		free(errors);
		ssh_execute_start_clear(&start);
	}
	for (int group = 0; group < 2; group++)
	{
		ExecuteStart start = {.marker = "m", .given = true};
		char *errors = own_output(&start, true, group ? "no\nm cwd\n" : "m start 5\n", 3);

		ok(start.state == (group ? START_NO_CWD : START_DONE) && !start.group && errors[0] == '\0',
		   "execute: %s", group ? "no directory" : "no process group");
		free(errors);
		ssh_execute_start_clear(&start);
	}
	/* Lines of a hostile host: what looks like a number later on is none of the line. */
	for (size_t piece = 1; piece < 80; piece++)
	{
		ExecuteStart start = {.marker = "m", .given = true};
		char *errors =
		    own_output(&start, true, "m start \n\n\n\n\n      \n  7\nm start 99\nsecret\n", piece);

		ok(start.pid == 99 && !start.group && strcmp(errors, "secret\n") == 0,
		   "execute: a start without a number is none, in pieces of %zu: \"%.40s\"", piece, errors);
		free(errors);
		ssh_execute_start_clear(&start);
	}
	/* A host that says much, byte by byte, and always nearly what is waited for. */
	for (size_t length = 1; length <= 2; length++)
	{
		ExecuteStart start = {.marker = "envrt-12", .given = true};
		double begin;

		for (size_t i = 0; i < 60000 / (sizeof line - 1); i++)
			free(own_output(&start, true, line, sizeof line));
		begin = seconds();
		for (size_t i = 0; i < 2000; i++)
			free(own_output(&start, true, length == 1 ? "x" : "x\n", length));
		ok(start.state == START_WAITING && seconds() - begin < 0.5,
		   "execute: many words, in %.0f ms", (seconds() - begin) * 1000);
		free(own_output(&start, true, "envrt-12 start 7\n", 5));
		ok(start.state == START_DONE && start.pid == 7, "... and then the right one");
		ssh_execute_start_clear(&start);
	}
	/* A host that says that all has begun before it was given anything, and then gets it. */
	for (size_t piece = 1; piece < 80; piece++)
	{
		static const char early[] = "m ready 2\nm out\nm read\nm start 5\nwords\n";
		ExecuteStart start = {.marker = "m"};
		char *said = own_output(&start, true, early, piece);

		ok(start.state == START_WAITING && said[0] == '\0' && !ssh_execute_start_is_ready(&start),
		   "execute: what is said before its time counts for nothing, in pieces of %zu", piece);
		free(said);
		start.given = true;
		said = own_output(&start, true, "x\nm start 6\ny", 1);
		ok(start.state == START_DONE && start.pid == 6 && strcmp(said, "y") == 0,
		   "... also later, and no more is taken than came");
		free(said);
		ssh_execute_start_clear(&start);
	}
}

/* What is left of a text of the remote side when the command was given these. */
static void
hides(const char *value, const char *text, const char *expected, const char *name)
{
	ExecuteVariable variable = {.name = "TOKEN", .value = (char *) value};
	ExecuteRequest request = {.env = &variable, .env_count = 1};
	char *copy = xstrdup(text);

	execute_request_mask(&request, NULL, copy, strlen(copy));
	is(copy, expected, name);
	free(copy);
}

static void
test_secret_parts(void)
{
	Bytes large = {0};
	ExecuteRequest request = {.input = "input-of-it\nanother line", .input_length = 24};
	char text[] = "read: input-of, another li";
	char *mebibyte = xcalloc(1, 1024 * 1024 + 2);
	double begin = seconds();

	hides("hidden-12345", "choice: hidden-12345?", "choice: ************?", "parts: a whole value");
	hides("hidden-12345", "choice: hidden-12345hidden-12345", "choice: ************************",
	      "parts: twice");
	hides("hidden-12345", "cut: hidden-1, folded: den-12345", "cut: ********, folded: *********",
	      "parts: what was cut");
	hides("it's hidden-12345", "+ export 'TOKEN=it'\\''s hidden-12345'",
	      "+ export 'TOKEN=********************'", "parts: what was quoted");
	hides("abc'defg", "export TOKEN='abc'\\''defg'", "export TOKEN='***********'",
	      "parts: less than eight bytes around a quote");
	hides("abc'defg", "+ TOKEN='abc'\"'\"'defg'", "+ TOKEN='************'",
	      "parts: as dash shows it");
	hides("abc'defg", "+ TOKEN=$'abc\\'defg'", "+ TOKEN=$'*********'", "parts: as ksh shows it");
	hides("1234", "pin 1234.", "pin ****.", "parts: a short one");
	hides("123", "pin 123.", "pin 123.", "parts: one that is in any text");
	hides("another one", "nothing", "nothing", "parts: nothing of it");
	hides("hidden-12345", "", "", "parts: no text");
	execute_request_mask(&request, NULL, text, strlen(text));
	is(text, "read: ********, **********", "parts: of stdin");
	/* Parts that differ in their last two bytes alone. */
	for (int i = 0; i < 131072; i++)
	{
		char part[8] = {
		    'A', 'A', 'A', 'A', 'A', 'A', (char) (1 + i % 250), (char) (1 + i / 250 % 250)};

		memcpy(mebibyte + (size_t) i * 8, part, 8);
		if (i < 8192)
			bytes_append(&large, part, 8);
	}
	begin = seconds();
	request.input = mebibyte;
	request.input_length = 1024 * 1024;
	execute_request_mask(&request, NULL, large.data, large.length);
	ok(strspn(large.data, "*") == 65536 && seconds() - begin < 1, "parts: many that are alike");
	large.length = 0;
	/* Much of the same on both sides takes no time; what is too long is not searched for. */
	begin = seconds();
	memset(mebibyte, 'a', 1024 * 1024);
	for (int i = 0; i < 65536; i++)
		bytes_append_text(&large, "a");
	execute_request_mask(&request, NULL, large.data, large.length);
	ok(strspn(large.data, "*") == 65536 && seconds() - begin < 5, "parts: much of the same");
	request.input_length++;
	strcpy(text, "words");
	execute_request_mask(&request, NULL, text, strlen(text));
	is(text, "*****", "parts: too much to search for");
	free(mebibyte);
	bytes_free(&large);
}

/* Whether the line ends exactly the process that is meant, by its age. */
static bool
ends_process(long wrong_age)
{
	int status = 0;
	pid_t pid = fork();
	ExecuteStart start = {.pid = pid};
	char *line;

	if (pid == 0)
	{
		alarm(20);
		pause();
		_exit(0);
	}
	line = ssh_execute_end_line(&start, (uint64_t) wrong_age, 0, 0);
	if (system(line) < 0)
		abort();
	free(line);
	/* Of two signals the kernel delivers the lower one first. */
	kill(pid, SIGXCPU);
	waitpid(pid, &status, 0);
	return WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGKILL;
}

static void
write_file(const char *directory, const char *name, const char *text)
{
	char *path = xformat("%s/%s", directory, name);
	FILE *file = fopen(path, "w");

	if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0)
		abort();
	free(path);
}

/* With a directory that looks like a cgroup: what is written to its file stays there. */
static void
test_cgroups(void)
{
	char root[] = "/tmp/envrt-units-XXXXXX";
	const char *mounts[] = {"/nonexistent", NULL, NULL};
	const char *own = "4:memory:/other\n1:name=x:/y/z\n0::/unit/main\n";
	char *unit;
	char *command;

	if (mkdtemp(root) == NULL)
		abort();
	mounts[1] = root;
	unit = xformat("%s/unit", root);
	if (mkdir(unit, 0700) < 0)
		abort();
	write_file(unit, "cgroup.controllers", "cpu memory pids\n");
	write_file(unit, "cgroup.subtree_control", "0123456789012 memory pids\n");
	ok(sandbox_cgroups_find(mounts, own), "cgroups: a delegated parent");
	ok(sandbox_cgroup_new(getpid(), 1, 1) == NULL, "cgroups: a limit that can't be set");
	ok(sandbox_cgroups_find(mounts, "0::/unit/main"), "cgroups: no line end");
	ok(!sandbox_cgroups_find(mounts, "0::/\n"), "cgroups: the root has no parent");
	ok(!sandbox_cgroups_find(mounts, "0::/unit\n"), "cgroups: the root is nobody's");
	ok(!sandbox_cgroups_find(mounts, "4:memory:/unit/main\n"), "cgroups: version 1");
	ok(!sandbox_cgroups_find(mounts, ""), "cgroups: none");
	ok(!sandbox_cgroups_find(mounts, "0::/other/main\n"), "cgroups: not to be found");
	write_file(unit, "cgroup.controllers", "cpu memory_x pids\n");
	ok(!sandbox_cgroups_find(mounts, own), "cgroups: without a controller");
	write_file(unit, "cgroup.controllers", "memory pids\n");
	write_file(unit, "cgroup.subtree_control", "\n");
	ok(!sandbox_cgroups_find(mounts, own), "cgroups: controllers that can't be handed on");
	ok(sandbox_cgroup_new(getpid(), 1, 1) == NULL, "cgroups: then there are none");
	ok(!sandbox_cgroup_ran_out_of_memory(NULL), "cgroups: which is no lack of memory");
	sandbox_cgroup_free(NULL);
	sandbox_cgroups_close();
	/* Of the sandbox that could not be limited nothing is left, or this would not be all. */
	command = xformat("rm '%s'/cgroup.*; rmdir '%s' '%s'", unit, unit, root);
	ok(system(command) == 0, "cgroups: all gone");
	free(command);
	free(unit);
}

static void
test_sandbox_ids(void)
{
	static const char *const bad[] = {"",
	                                  "00000000-0000-4000-8000-00000000000",
	                                  "00000000-0000-4000-8000-0000000000000",
	                                  "00000000-0000-4000-8000-00000000000A",
	                                  "000000000000-4000-8000-00000000-0000",
	                                  "00000000/0000/4000/8000/000000000000",
	                                  "../../../../../../../../../../../../"};

	ok(sandbox_is_id("0123abcd-0000-4000-8000-0123456789ef"), "sandboxes: a uuid");
	ok(!sandbox_is_id(NULL), "sandboxes: no text");
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		ok(!sandbox_is_id(bad[i]), "sandboxes: no uuid: %s", bad[i]);
}

/*
 * The mask of a worker's secrets
 */

static json_t *in_use; /* what calls in flight brought */

static void
learn_in_use(void *owner)
{
	secret_mask_learn(*(SecretMask **) owner, "in use", in_use);
}

/* A company's secret; they all begin alike. */
static void
learn_secret(SecretMask *mask, unsigned company, unsigned number)
{
	char name[32];
	char text[64];
	json_t *secrets;

	snprintf(name, sizeof name, "company %u", company);
	snprintf(text, sizeof text, "secret-%08x-%08x-of", company, number);
	secrets = json_pack("{s:s}", "id", text);
	secret_mask_learn(mask, name, secrets);
	json_decref(secrets);
}

static bool
is_hidden(SecretMask *mask, const char *format, unsigned company, unsigned number)
{
	char text[64];

	snprintf(text, sizeof text, format, company, number);
	secret_mask_apply(mask, text, strlen(text));
	return text[strspn(text, "*")] == '\0';
}

#define SECRET "secret-%08x-%08x-of"

static void
test_masks(void)
{
	SecretMask *mask;
	json_t *shared = json_pack("{s:s}", "id", "of-two-companies");
	double start = seconds();
	size_t length = 20000;
	char *text = malloc(length + 1);

	if (text == NULL)
		abort();
	in_use = json_pack("{s:s}", "id", "of-a-call-in-flight");
	mask = secret_mask_new(learn_in_use, &mask);
	learn_in_use(&mask);
	/* Many companies: each call of theirs costs no more, and no secret is forgotten. */
	for (unsigned i = 0; i < 100000; i++)
		learn_secret(mask, i, 0);
	for (unsigned i = 0; i < 100000; i++)
		learn_secret(mask, i, 0);
	for (size_t i = 0; i < length; i++)
		text[i] = "secret-00"[i % 9];
	text[length] = '\0';
	secret_mask_apply(mask, text, length);
	ok(seconds() - start < 30, "masks: secrets of many companies take no time");
	ok(!secret_mask_is_full(mask), "masks: there is room for them");
	ok(is_hidden(mask, SECRET, 0, 0) && is_hidden(mask, SECRET, 99999, 0), "masks: all are hidden");
	ok(!is_hidden(mask, SECRET, 100000, 0), "masks: and nothing else");
	/* A company that brings more than there is room for loses its own old ones. */
	secret_mask_learn(mask, "company 1", shared);
	secret_mask_learn(mask, "company 2", shared);
	for (unsigned i = 1; i < 600; i++)
		learn_secret(mask, 1, i);
	ok(!is_hidden(mask, SECRET, 1, 0) && is_hidden(mask, SECRET, 1, 599),
	   "masks: of many secrets of a company the oldest are forgotten");
	ok(is_hidden(mask, "of-two-companies", 0, 0), "masks: but not what another one has too");
	ok(is_hidden(mask, SECRET, 2, 0), "masks: nor others'");
	secret_mask_worker_ended(mask);
	ok(is_hidden(mask, SECRET, 2, 0),
	   "masks: as long as there is room a new worker changes nothing");
	/* Until there is none for anybody. */
	for (unsigned i = 100000; !secret_mask_is_full(mask) && i < 400000; i++)
		learn_secret(mask, i, 0);
	ok(secret_mask_is_full(mask) && is_hidden(mask, "anything %u %u", 1, 2),
	   "masks: when there is no more room all is hidden");
	secret_mask_worker_ended(mask);
	ok(!secret_mask_is_full(mask) && !is_hidden(mask, SECRET, 2, 0) &&
	       is_hidden(mask, "of-a-call-in-flight", 0, 0),
	   "masks: a new worker knows what is in use, and nothing more");
	secret_mask_free(mask);
	json_decref(shared);
	json_decref(in_use);
	free(text);
}

/*
 * Fair queues
 */

/* Serves up to `places` items at once, of those named by a letter for the company, and a number. */
static char *
serve_order(FairQueue *queue, size_t places, size_t share)
{
	static char order[256];
	size_t length = 0;
	FairItem *item;

	order[0] = '\0';
	while (queue->serving < places && (item = fair_queue_next(queue, share)) != NULL)
	{
		fair_queue_serve(queue, item);
		length += (size_t) snprintf(order + length, sizeof order - length, "%s ",
		                            (const char *) item->data);
	}
	return order;
}

static void
add_all(FairQueue *queue, FairItem *items, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++)
	{
		char company[2] = {names[i][0], '\0'};

		fair_queue_add(queue, &items[i], company, (void *) names[i]);
	}
}

static void
test_fair_queues(void)
{
	static const char *const names[] = {"a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1"};
	enum
	{
		COUNT = sizeof names / sizeof names[0]
	};
	FairQueue queue = {0};
	FairItem items[COUNT] = {0};
	FairItem other = {0};
	FairItem nobodys = {0};
	char *order;
	bool alternates = true;

	ok(fair_queue_next(&queue, 0) == NULL, "a fair queue is empty at first");
	add_all(&queue, items, names, 5);
	is(serve_order(&queue, 3, 0), "a1 a2 a3 ", "one company alone gets all places, in its order");
	add_all(&queue, items + 5, names + 5, 3);
	fair_queue_remove(&queue, &items[0]);
	order = serve_order(&queue, 3, 0);
	ok(strcmp(order, "b1 ") == 0 || strcmp(order, "c1 ") == 0,
	   "a place that becomes free goes to one that has none");
	fair_queue_remove(&queue, &items[1]);
	order = serve_order(&queue, 3, 0);
	ok(strcmp(order, "b1 ") == 0 || strcmp(order, "c1 ") == 0, "... and the next to another");
	fair_queue_remove(&queue, &items[2]);
	is(serve_order(&queue, 3, 0), "a4 ", "... and then to the first again");
	is(serve_order(&queue, 8, 1), "", "a company with its share gets no more");
	is(serve_order(&queue, 8, 2), "b2 a5 ", "... until its share is larger");
	ok(queue.waiting == 0 && queue.serving == 5, "what waits and is served is counted");
	for (size_t i = 0; i < COUNT; i++)
		fair_queue_remove(&queue, &items[i]);
	ok(queue.companies == NULL && queue.serving == 0, "nothing is left of an empty queue");
	fair_queue_remove(&queue, &items[0]);
	ok(items[0].company == NULL, "what is in no queue can be removed");

	/* One that comes anew each time, when there is one place. */
	add_all(&queue, items, names, 5);
	for (size_t i = 0; i < 4; i++)
	{
		FairItem *item;

		fair_queue_add(&queue, &other, "b", "b");
		item = fair_queue_next(&queue, 0);
		fair_queue_serve(&queue, item);
		fair_queue_remove(&queue, item);
		if (item != &other)
			fair_queue_remove(&queue, &other);
		alternates = alternates && (item == &other) == (i % 2 == 0);
	}
	ok(alternates, "a company that comes anew each time does not always come first");
	fair_queue_remove(&queue, &items[3]);
	fair_queue_add(&queue, &nobodys, NULL, "nobody's");
	is(serve_order(&queue, 8, 0), "nobody's a3 a5 ",
	   "what is nobody's has its turn, and what left has none");
	for (size_t i = 0; i < COUNT; i++)
		fair_queue_remove(&queue, &items[i]);
	fair_queue_remove(&queue, &nobodys);
	ok(queue.companies == NULL, "... and nothing is left");
}

int
main(void)
{
	if (sodium_init() < 0)
		return 1;
	ssh_init();
	ssh_set_log_level(SSH_LOG_NOLOG);
	make_keys();
	test_known_hosts();
	test_keys();
	test_allowed_hosts();
	test_script();
	test_answers();
	test_text();
	test_manifests();
	test_backoff();
	test_lease_keys();
	test_masks();
	test_latency();
	test_fair_queues();
	test_execute_start();
	test_secret_parts();
	ok(ends_process(0), "execute: a process of the right age is ended");
	ok(!ends_process(100), "... and none that is too young");
	test_cgroups();
	test_sandbox_ids();
	for (int i = 0; i < 3; i++)
	{
		ssh_key_free(keys[i]);
		free(lines[i]);
	}
	ssh_finalize();
	return done_testing();
}
