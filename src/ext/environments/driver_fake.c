/*
 * driver_fake.c
 *		The deterministic fake provider of the sandbox driver.
 *
 * It makes names and nothing else, for tests and for trying a control plane
 * without an outside.  With reuseLease every lease of an environment gets one
 * and the same provider lease; the unique index environment_leases_holder_idx
 * sees to it that one active lease holds it at a time.
 */
#include "postgres.h"

#include "environments/drivers.h"
#include "base/json.h"
#include "environments/canonical_config.h"
#include "rights/tables.h"
#include "utils/builtins.h"

typedef struct FakeConfig
{
	char *image;
	bool reuse_lease;
} FakeConfig;

static void
fake_config(Jsonb *stored, FakeConfig *config)
{
	json_t *canonical = config_canonical("sandbox", stored);

	config->image = text_from_utf8(json_string_value(json_object_get(canonical, "image")));
	config->reuse_lease = json_is_true(json_object_get(canonical, "reuseLease"));
}

/* Whether an earlier lease, whatever became of it, was of the same sandbox. */
static bool
fake_seen_before(const char *provider_lease_id, const FakeConfig *config)
{
	/* In the very words of environment_leases_reuse_idx. */
	static Statement find = {
	    "SELECT 1 FROM @environment_leases@"
	    " WHERE lease_policy = 'reuse_by_environment'"
	    " AND hashtextextended(provider_lease_id || (metadata ->> 'image'), 0) = "
	    "hashtextextended($1 || $2, 0)"
	    " AND (provider_lease_id || (metadata ->> 'image'))"
	    " = ($1 || $2)"
	    " AND (metadata ->> 'provider') = 'fake'"
	    " AND (metadata -> 'reuseLease') = 'true'::jsonb"
	    " LIMIT 1",
	    2,
	    {TEXTOID, TEXTOID},
	};
	Datum values[2] = {CStringGetTextDatum(provider_lease_id), CStringGetTextDatum(config->image)};

	return statement_execute(&find, values, NULL) > 0;
}

static void
fake_acquire(const AcquireRequest *request, AcquiredLease *lease)
{
	FakeConfig config;
	JsonbObject metadata;

	fake_config(request->environment->config, &config);
	lease->provider = "fake";
	if (config.reuse_lease)
	{
		lease->provider_lease_id =
		    psprintf("sandbox://fake/%s", uuid_text(request->environment->id));
		lease->lease_policy = "reuse_by_environment";
	}
	else
	{
		lease->provider_lease_id = psprintf("sandbox://fake/%s/%s", uuid_text(request->run_id),
		                                    uuid_text(uuid_generate()));
		lease->lease_policy = "ephemeral";
	}

	jsonb_object_begin(&metadata);
	jsonb_object_string(&metadata, "driver", "sandbox");
	jsonb_object_string(&metadata, "executionWorkspaceMode", request->workspace_mode);
	jsonb_object_string(&metadata, "provider", "fake");
	jsonb_object_string(&metadata, "image", config.image);
	jsonb_object_bool(&metadata, "reuseLease", config.reuse_lease);
	if (config.reuse_lease && fake_seen_before(lease->provider_lease_id, &config))
		jsonb_object_bool(&metadata, "resumedLease", true);
	lease->metadata = jsonb_object_end(&metadata);
}

static void
fake_probe(const Environment *environment, ProbeResult *result)
{
	FakeConfig config;
	JsonbObject details;

	fake_config(environment->config, &config);
	jsonb_object_begin(&details);
	jsonb_object_string(&details, "provider", "fake");
	jsonb_object_string(&details, "image", config.image);
	jsonb_object_bool(&details, "reuseLease", config.reuse_lease);

	result->ok = true;
	result->summary = psprintf("Fake sandbox provider is ready for image %s.", config.image);
	result->details = jsonb_object_end(&details);
}

const Driver fake_driver = {
    .name = "sandbox",
    .provider = "fake",
    .acquire = fake_acquire,
    .probe = fake_probe,
};
