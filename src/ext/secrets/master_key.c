/*
 * master_key.c
 *		The key that secrets are encrypted under.
 *
 * The master key is 32 random bytes in a file, as 64 hex digits.  What
 * encrypts, hashes and unseals is derived from it (crypto_kdf), so that no
 * key is used for two things.
 *
 * A key must never be made while there is something under another one: the
 * file is written beside its place, fsynced, and put there by link(), which
 * never overwrites; that happens only while this database has no secret, and
 * while the key's fingerprint beside the default place (which stays when the
 * key file is lost) doesn't say that some database of this server had one.
 * Each database remembers the fingerprint of the key its secrets are under
 * (envrt.settings), so a replaced key is an error that says so, not garbage.
 * pg_upgrade takes the databases along and leaves the files behind: so a
 * fingerprint in a database without a key file means that there is a key
 * somewhere, and none is made.  Each scheduler brings the two fingerprints in
 * step when it starts and when a database has got one, so that a database
 * without secrets knows as well.
 *
 * The file is read at each use and the bytes are zeroed after it: nothing of
 * it stays in the backend.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/file_perm.h"
#include "secrets/master_key.h"
#include "miscadmin.h"
#include "shared/protocol.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "rights/tables.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define DEFAULT_KEY_FILE ENVRT_DIRECTORY "/master.key"
#define FINGERPRINT_FILE ENVRT_DIRECTORY "/master.key.fingerprint"

#define KEY_BYTES crypto_kdf_KEYBYTES
#define KEY_CONTEXT "envrtkey"
#define FINGERPRINT_BYTES 16

#define RESTORE_HINT                                                                               \
	"Restore the file from a backup, or correct envrt.master_key_file.  After pg_upgrade, copy "   \
	"" DEFAULT_KEY_FILE " from the old cluster's data directory to the new one's."

enum
{
	SUBKEY_ENCRYPTION = 1,
	SUBKEY_HASH,
	SUBKEY_SEALING,
	SUBKEY_FINGERPRINT
};

static const char *
key_file(void)
{
	return envrt_master_key_file[0] != '\0' ? envrt_master_key_file : DEFAULT_KEY_FILE;
}

static void
report_unusable(const char *path, const char *problem, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
	                errmsg("the master key file \"%s\" %s", path, problem), errhint("%s", hint)));
}

/*
 * Read 64 hex digits from a file.  False when there is no file.
 */
static bool
read_hex_file(const char *path, unsigned char *bytes, size_t length, bool secret)
{
	char text[2 * 64 + 8];
	struct stat status;
	int fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	ssize_t nread;
	size_t decoded = 0;
	const char *end = NULL;
	int result;

	if (fd < 0)
	{
		if (errno == ENOENT)
			return false;
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("could not open the master key file \"%s\": %m", path),
		                errhint("Let the server's user, and no one else, read it.")));
	}
	if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
		report_unusable(path, "is not a regular file",
		                "Set envrt.master_key_file to the key file.");
	if (secret && (status.st_mode & (S_IRWXO | S_IWGRP | S_IXGRP |
	                                 (pg_dir_create_mode == PG_DIR_MODE_OWNER ? S_IRGRP : 0))) != 0)
		report_unusable(
		    path, "can be read by others",
		    "chmod 0600 the file, and rotate the secrets if somebody may have read it.");
	nread = read(fd, text, sizeof(text));
	if (nread < 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("could not read the master key file \"%s\": %m", path)));
	CloseTransientFile(fd);
	result = sodium_hex2bin(bytes, length, text, nread, NULL, &decoded, &end);
	if (result == 0)
		while (end < text + nread && (*end == '\n' || *end == '\r'))
			end++;
	if (result != 0 || decoded != length || end != text + nread)
	{
		sodium_memzero(text, sizeof(text));
		report_unusable(
		    path, "does not hold a key",
		    "It must be 64 hexadecimal digits and a newline: restore it from a backup.");
	}
	sodium_memzero(text, sizeof(text));
	return true;
}

/*
 * Write a file that either exists whole and on disk or not at all, and never
 * replaces another.  False when there is one already.
 */
static bool
write_hex_file(const char *path, const unsigned char *bytes, size_t length)
{
	char *temporary = psprintf("%s.%d.tmp", path, MyProcPid);
	char text[2 * 64 + 2];
	size_t text_length = 2 * length + 1;
	int fd;
	bool written;
	bool exists = false;

	sodium_bin2hex(text, sizeof(text), bytes, length);
	text[text_length - 1] = '\n';
	(void) unlink(temporary);
	fd = OpenTransientFilePerm(temporary, O_CREAT | O_EXCL | O_WRONLY | PG_BINARY,
	                           S_IRUSR | S_IWUSR);
	errno = 0;
	written = fd >= 0 && write(fd, text, text_length) == (ssize_t) text_length && pg_fsync(fd) == 0;
	sodium_memzero(text, sizeof(text));
	if (written && link(temporary, path) != 0)
	{
		exists = errno == EEXIST;
		written = exists;
	}
	if (!written)
	{
		/* A short write sets no error. */
		int saved_errno = errno != 0 ? errno : ENOSPC;

		(void) unlink(temporary);
		errno = saved_errno;
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		                errmsg("could not write the master key file \"%s\": %m", path),
		                errhint("Let the server's user write to its directory, or make the file "
		                        "yourself: 64 random hexadecimal digits.")));
	}
	CloseTransientFile(fd);
	(void) unlink(temporary);
	if (!exists)
		fsync_fname(path, false);
	{
		char *parent = pstrdup(path);

		get_parent_directory(parent);
		fsync_fname(parent[0] != '\0' ? parent : ".", true);
	}
	return !exists;
}

static void
fingerprint_of(const unsigned char *master, unsigned char *fingerprint)
{
	crypto_kdf_derive_from_key(fingerprint, FINGERPRINT_BYTES, SUBKEY_FINGERPRINT, KEY_CONTEXT,
	                           master);
}

static bool
database_has_secrets(void)
{
	static Statement find = {"SELECT 1 FROM @company_secret_versions@ LIMIT 1", 0, {0}};
	ApiCall owner;
	bool found;

	owner_enter(&owner);
	found = statement_execute(&find, NULL, NULL) > 0;
	api_leave(&owner);
	return found;
}

/* The fingerprint that this database remembers, as text; NULL: none. */
static char *
remembered_fingerprint(void)
{
	static Statement find = {
	    "SELECT value FROM envrt.settings WHERE name = 'master_key_fingerprint'",
	    0,
	    {0},
	};

	MemoryContext context = CurrentMemoryContext;
	char *text = NULL;
	ApiCall ledger;

	ledger_enter(&ledger);
	if (statement_execute(&find, NULL, NULL) > 0)
		text = MemoryContextStrdup(context, result_text(0, 1));
	api_leave(&ledger);
	return text;
}

static void
remember_fingerprint(const char *text)
{
	static Statement remember = {
	    "INSERT INTO envrt.settings (name, value, updated_at) VALUES ('master_key_fingerprint', "
	    "$1, $2)"
	    " ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, updated_at = "
	    "EXCLUDED.updated_at",
	    2,
	    {TEXTOID, TIMESTAMPTZOID},
	};
	Datum values[2] = {CStringGetTextDatum(text), TimestampTzGetDatum(GetCurrentTimestamp())};
	ApiCall ledger;

	ledger_enter(&ledger);
	statement_execute(&remember, values, NULL);
	api_leave(&ledger);
}

static void
master_key_make_directory(void)
{
	if (MakePGDirectory(ENVRT_DIRECTORY) != 0 && errno != EEXIST)
		ereport(ERROR, (errcode_for_file_access(),
		                errmsg("could not create directory \"%s\": %m", ENVRT_DIRECTORY)));
}

/* Have the other databases know of the key that this one remembers. */
static void
write_fingerprint(const char *text)
{
	unsigned char fingerprint[FINGERPRINT_BYTES];
	size_t length;

	master_key_make_directory();
	if (sodium_hex2bin(fingerprint, sizeof(fingerprint), text, strlen(text), NULL, &length, NULL) ==
	        0 &&
	    length == sizeof(fingerprint))
		(void) write_hex_file(FINGERPRINT_FILE, fingerprint, sizeof(fingerprint));
}

/*
 * master_key_start
 *		In the scheduler: the fingerprints of server and database, brought in step.
 *
 * False when somebody writes envrt.settings: perhaps a transaction that remembers the fingerprint,
 * for whose end the scheduler does not wait.
 */
bool
master_key_start(void)
{
	unsigned char fingerprint[FINGERPRINT_BYTES];
	char text[2 * FINGERPRINT_BYTES + 1];
	bool in_file = read_hex_file(FINGERPRINT_FILE, fingerprint, sizeof(fingerprint), false);
	char *remembered = remembered_fingerprint();

	if (in_file && remembered == NULL)
	{
		Oid settings = get_relname_relid("settings", get_namespace_oid("envrt", false));

		if (!ConditionalLockRelationOid(settings, ShareRowExclusiveLock))
			return false;
		sodium_bin2hex(text, sizeof(text), fingerprint, sizeof(fingerprint));
		remember_fingerprint(text);
	}
	if (remembered == NULL)
		return true;
	if (!in_file)
		write_fingerprint(remembered);
	if (access(key_file(), F_OK) != 0 && errno == ENOENT)
		ereport(WARNING,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("the master key file \"%s\" does not exist", key_file()),
		         errdetail("This database remembers a key with the fingerprint %s.", remembered),
		         errhint(RESTORE_HINT)));
	return true;
}

/*
 * Have each database of the server remember the key, also one that has no secret: after a
 * pg_upgrade it would make another.  This one as well, should its transaction be rolled back.
 */
static void
tell_schedulers(void)
{
	if (shared_state == NULL)
		return;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->nslots; i++)
		if (shared_state->slots[i].state != SCHEDULER_FREE)
			scheduler_recheck(&shared_state->slots[i]);
	LWLockRelease(shared_state->lock);
}

/* Make the key file; somebody else may be doing so too. */
static void
master_key_make_key(unsigned char *master)
{
	const char *path = key_file();
	unsigned char fingerprint[FINGERPRINT_BYTES];
	bool has_secrets = database_has_secrets();
	const char *remembered = remembered_fingerprint();
	bool had_key = read_hex_file(FINGERPRINT_FILE, fingerprint, sizeof(fingerprint), false);

	/* Who had secrets or a fingerprint before we looked for these had a key before that. */
	if ((has_secrets || had_key || remembered != NULL) &&
	    read_hex_file(path, master, KEY_BYTES, true))
		return;
	if (remembered != NULL && !had_key)
		write_fingerprint(remembered);
	if (has_secrets)
		report_unusable(path, "does not exist, and there are secrets under it", RESTORE_HINT);
	if (had_key || remembered != NULL)
		report_unusable(
		    path, "does not exist, but this server had one",
		    RESTORE_HINT
		    "  If no database of this server has envrt secrets, remove " FINGERPRINT_FILE
		    " in the data directory, and in each database the row "
		    "master_key_fingerprint of envrt.settings, to have a new key made.");

	master_key_make_directory();
	crypto_kdf_keygen(master);
	if (!write_hex_file(path, master, KEY_BYTES) && !read_hex_file(path, master, KEY_BYTES, true))
		report_unusable(path, "was there and is gone again", "Try again.");
	fingerprint_of(master, fingerprint);
	(void) write_hex_file(FINGERPRINT_FILE, fingerprint, sizeof(fingerprint));
}

/* This database must be the key's: remember its fingerprint, or compare. */
static void
check_fingerprint(const unsigned char *master)
{
	unsigned char fingerprint[FINGERPRINT_BYTES];
	char text[2 * FINGERPRINT_BYTES + 1];
	char *stored = remembered_fingerprint();

	fingerprint_of(master, fingerprint);
	sodium_bin2hex(text, sizeof(text), fingerprint, sizeof(fingerprint));
	if (stored != NULL && strcmp(stored, text) == 0)
		return;
	if (stored != NULL && database_has_secrets())
		ereport(ERROR,
		        (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		         errmsg("the master key file \"%s\" holds another key than the one this database's "
		                "secrets are under",
		                key_file()),
		         errdetail("Fingerprint of the file's key: %s; of the key of the secrets: %s.",
		                   text, stored),
		         errhint("Restore the key file that belongs to this database.")));
	remember_fingerprint(text);
	/* Somebody else may have made the key file. */
	write_fingerprint(text);
	/* Now that this transaction writes: this database's scheduler is not to be faster. */
	tell_schedulers();
}

/* The file's key, made if there is none, and checked against this database. */
static void
load_master(unsigned char *master)
{
	if (!read_hex_file(key_file(), master, KEY_BYTES, true))
		master_key_make_key(master);
	check_fingerprint(master);
}

void
secret_keys_load(SecretKeys *keys)
{
	unsigned char master[KEY_BYTES];
	unsigned char seed[crypto_box_SEEDBYTES];

	PG_TRY();
	{
		load_master(master);
	}
	PG_CATCH();
	{
		sodium_memzero(master, sizeof(master));
		PG_RE_THROW();
	}
	PG_END_TRY();

	crypto_kdf_derive_from_key(keys->encryption, sizeof(keys->encryption), SUBKEY_ENCRYPTION,
	                           KEY_CONTEXT, master);
	crypto_kdf_derive_from_key(keys->hash, sizeof(keys->hash), SUBKEY_HASH, KEY_CONTEXT, master);
	crypto_kdf_derive_from_key(seed, sizeof(seed), SUBKEY_SEALING, KEY_CONTEXT, master);
	crypto_box_seed_keypair(keys->sealing_public, keys->sealing_secret, seed);
	sodium_memzero(master, sizeof(master));
	sodium_memzero(seed, sizeof(seed));
}

void
secret_keys_clear(SecretKeys *keys)
{
	sodium_memzero(keys, sizeof(SecretKeys));
}
