// The manifest of the plugins in this folder; VARIANT is put in when it is compiled.

import type { PaperclipPluginManifestV1 } from "@paperclipai/plugin-sdk";

declare const VARIANT: "tempdir" | "tempdir-keyed";

const keyed = VARIANT === "tempdir-keyed";

const manifest: PaperclipPluginManifestV1 = {
	id: `envrt.${VARIANT}`,
	apiVersion: 1,
	version: "1.2.3",
	displayName: "Temporary directories",
	description: "A sandbox provider for tests whose sandboxes are directories",
	author: "envrt",
	categories: ["automation"],
	capabilities: [
		"environment.drivers.register",
		"secrets.read-ref",
		"plugin.state.read",
		"plugin.state.write",
		"metrics.write",
	],
	entrypoints: { worker: "./dist/worker.js" },
	environmentDrivers: [
		{
			driverKey: VARIANT,
			kind: "sandbox_provider",
			displayName: "Temporary directories",
			configSchema: {
				type: "object",
				properties: {
					directory: { type: "string" },
					apiKey: { type: "string", format: "secret-ref" },
				},
				required: ["directory"],
			},
			// envrt's own; no type of the SDK knows it.
			...(keyed ? { acceptsLeaseId: true } : {}),
		},
		{
			driverKey: `${VARIANT}-machine`,
			kind: "environment_driver",
			displayName: "Temporary directories, as a driver",
			configSchema: { type: "object", properties: { directory: { type: "string" } } },
		},
	],
};

export default manifest;
