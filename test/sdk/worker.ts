// A sandbox provider for tests, written for the published SDK: its sandboxes are directories below
// config.directory.
//
//   sandboxes/<name>/        one per sandbox
//   shutdown                 the process id of a worker that was told to end
//   exists/, journal, knobs  as the journal plugin has them (test/plugins/journal/worker), so that the
//                            same tests can look at them and make the same things go wrong
//
// It can't list its leases; VARIANT tempdir-keyed ends one by its leaseId alone.

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { definePlugin, runWorker } from "@paperclipai/plugin-sdk";
import type { PluginContext } from "@paperclipai/plugin-sdk";

declare const VARIANT: "tempdir" | "tempdir-keyed";

type Params = {
	config: Record<string, unknown>;
	leaseId?: string;
	providerLeaseId?: string | null;
};

const GRACE_MS = 250;
const DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin";
let context: PluginContext;
let lastDirectory: string | undefined;

function directoryOf(params: Params): string {
	const directory = params.config.directory;

	if (typeof directory !== "string" || !path.isAbsolute(directory))
		throw new Error("config.directory must be an absolute path");
	lastDirectory = directory;
	for (const name of ["", "exists", "sandboxes"]) fs.mkdirSync(path.join(directory, name), { recursive: true });
	return directory;
}

// Through another name, so that whoever reads it sees all of it or nothing.
function writeFile(file: string, text: string): void {
	const temporary = path.join(path.dirname(file), `.${path.basename(file)}.${process.pid}`);

	fs.writeFileSync(temporary, text);
	fs.renameSync(temporary, file);
}

function journal(directory: string, what: string, params: Params, id?: string | null, ...how: string[]): void {
	const words = [(Date.now() / 1000).toFixed(3), process.pid, what, params.leaseId ?? "-", id ?? "-", ...how];

	fs.appendFileSync(path.join(directory, "journal"), words.join(" ") + "\n");
}

function existsFile(directory: string, id: string): string {
	return path.join(directory, "exists", id.replaceAll("/", "_"));
}

function sandboxOf(directory: string, id: string): string {
	return path.join(directory, "sandboxes", path.basename(id));
}

// What a knob says, when it is there and applies to this lease.
function knob(directory: string, verb: string, name: string, leaseId?: string): string | undefined {
	let text: string;

	try {
		text = fs.readFileSync(path.join(directory, "knobs", `${verb}-${name}`), "utf8").trim();
	} catch {
		return undefined;
	}
	const [value, lease] = text.split(/\s+/);

	return lease !== undefined && lease !== leaseId ? undefined : value || "always";
}

// Whether one that counts down applies.
function counted(directory: string, verb: string, name: string, leaseId?: string): boolean {
	const value = knob(directory, verb, name, leaseId);
	const file = path.join(directory, "knobs", `${verb}-${name}`);

	if (value === undefined || value === "always") return value !== undefined;
	if (Number(value) <= 0) return false;
	const lease = fs.readFileSync(file, "utf8").trim().split(/\s+/)[1];

	writeFile(file, [Number(value) - 1, ...(lease ? [lease] : [])].join(" "));
	return true;
}

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const forever = () => new Promise<never>(() => {});

// Everything with an effect goes wrong here, if it is to.
async function act<T>(verb: string, params: Params, effect: (directory: string) => T): Promise<T> {
	const directory = directoryOf(params);
	const { leaseId } = params;

	if (counted(directory, verb, "die-before", leaseId)) process.kill(process.pid, "SIGKILL");
	if (counted(directory, verb, "fail", leaseId)) {
		console.error(`failing to ${verb}, as told`);
		throw new Error(`The knob ${verb}-fail is set`);
	}
	const delay = knob(directory, verb, "delay", leaseId);

	if (delay !== undefined) await pause(Number(delay));
	if (knob(directory, verb, "stall", leaseId) !== undefined) await forever();
	const result = effect(directory);

	if (counted(directory, verb, "die-after", leaseId)) process.kill(process.pid, "SIGKILL");
	if (knob(directory, verb, "hang", leaseId) !== undefined) await forever();
	const late = knob(directory, verb, "late", leaseId);

	if (late !== undefined) await pause(Number(late));
	return result;
}

function leaseOf(directory: string, id: string, more: Record<string, unknown> = {}) {
	return { providerLeaseId: id, metadata: { remoteCwd: sandboxOf(directory, id), ...more } };
}

function end(directory: string, params: Params, id: string | null | undefined, ...how: string[]): void {
	const existed = typeof id === "string" && fs.existsSync(existsFile(directory, id));

	if (typeof id === "string") {
		fs.rmSync(sandboxOf(directory, id), { recursive: true, force: true });
		fs.rmSync(existsFile(directory, id), { force: true });
	}
	journal(directory, existed ? "destroy" : "destroy-absent", params, id, ...how);
}

// Those of a lease, when it is all that is known.
function idsOf(directory: string, leaseId: string): string[] {
	return fs
		.readdirSync(path.join(directory, "exists"))
		.filter((name) => !name.startsWith(".") && fs.readFileSync(path.join(directory, "exists", name), "utf8") === leaseId)
		.map((name) => name.replace(/^journal:__/, "journal://"));
}

function destroy(directory: string, params: Params, ...how: string[]): void {
	if (typeof params.providerLeaseId !== "string" && params.leaseId !== undefined && VARIANT === "tempdir-keyed") {
		const ids = idsOf(directory, params.leaseId);

		for (const id of ids.length > 0 ? ids : [null]) end(directory, params, id, ...how);
	} else {
		end(directory, params, params.providerLeaseId, ...how);
	}
}

type Command = {
	command: string;
	args?: string[];
	cwd?: string;
	env?: Record<string, string>;
	stdin?: string | null;
	timeoutMs?: number;
};

function execute(home: string, params: Command): Promise<Record<string, unknown>> {
	return new Promise((resolve, reject) => {
		const child = spawn(params.command, params.args ?? [], {
			cwd: path.resolve(home, params.cwd ?? "."),
			env: { PATH: DEFAULT_PATH, ...params.env },
			detached: true,
		});
		const output = { stdout: "", stderr: "" };
		let timedOut = false;
		const signal = (name: NodeJS.Signals) => {
			try {
				process.kill(-child.pid!, name);
			} catch {
				// It is gone.
			}
		};
		const timer =
			params.timeoutMs === undefined
				? undefined
				: setTimeout(() => {
						timedOut = true;
						signal("SIGTERM");
						setTimeout(() => signal("SIGKILL"), GRACE_MS).unref();
					}, params.timeoutMs);

		for (const name of ["stdout", "stderr"] as const) {
			child[name].setEncoding("utf8");
			child[name].on("data", (text: string) => (output[name] += text));
		}
		child.on("error", (error) => {
			clearTimeout(timer);
			reject(error);
		});
		child.on("close", (code, name) => {
			clearTimeout(timer);
			resolve({ exitCode: timedOut ? null : code, signal: name, timedOut, ...output });
		});
		child.stdin.on("error", () => {});
		child.stdin.end(params.stdin ?? "");
	});
}

const plugin = definePlugin({
	async setup(ctx) {
		context = ctx;
		ctx.logger.info("the plugin is set up");
	},
	async onHealth() {
		return { status: "ok" };
	},
	async onShutdown() {
		if (lastDirectory !== undefined) fs.writeFileSync(path.join(lastDirectory, "shutdown"), `${process.pid}\n`);
	},
	async onEnvironmentValidateConfig(params) {
		const directory = params.config.directory;

		if (typeof directory !== "string" || !path.isAbsolute(directory))
			return { ok: false, errors: ["directory must be an absolute path"] };
		return { ok: true, normalizedConfig: { ...params.config, directory: path.normalize(directory) } };
	},
	async onEnvironmentProbe(params) {
		return {
			ok: true,
			summary: `Sandboxes are below ${directoryOf(params as Params)}.`,
			metadata: { environment: Object.keys(process.env).sort(), pid: process.pid },
		};
	},
	async onEnvironmentAcquireLease(params) {
		const { apiKey } = params.config;
		let secretLength: number | undefined;

		if (typeof apiKey === "string" && /^[0-9a-f-]{36}$/.test(apiKey)) {
			const value = await context.secrets.resolve(apiKey);

			context.logger.info(`the key is ${value}`);
			secretLength = value.length;
		}
		return act("acquire", params as Params, (directory) => {
			const id = `journal://${process.pid}-${randomUUID()}`;

			fs.mkdirSync(sandboxOf(directory, id));
			writeFile(existsFile(directory, id), (params as Params).leaseId ?? "");
			journal(directory, "create", params as Params, id);
			return leaseOf(directory, id, secretLength === undefined ? {} : { secretLength });
		});
	},
	async onEnvironmentResumeLease(params) {
		return act("resume", params as Params, (directory) => {
			const id = params.providerLeaseId;

			if (!fs.existsSync(existsFile(directory, id))) throw new Error(`Lease ${id} not found — cannot resume`);
			writeFile(existsFile(directory, id), (params as Params).leaseId ?? "");
			journal(directory, "resume", params as Params, id);
			return leaseOf(directory, id, { resumedLease: true });
		});
	},
	async onEnvironmentReleaseLease(params) {
		await act("release", params as Params, (directory) => {
			if (params.config.reuseLease) journal(directory, "release", params as Params, params.providerLeaseId);
			else destroy(directory, params as Params, "by-release");
		});
	},
	async onEnvironmentDestroyLease(params) {
		await act("destroy", params as Params, (directory) => destroy(directory, params as Params));
	},
	async onEnvironmentRealizeWorkspace(params) {
		const cwd = path.join(sandboxOf(directoryOf(params as Params), params.lease.providerLeaseId ?? ""), "workspace");

		fs.mkdirSync(cwd, { recursive: true });
		return { cwd, metadata: { localPath: params.workspace.localPath ?? null, mode: params.workspace.mode ?? null } };
	},
	async onEnvironmentExecute(params) {
		const home = sandboxOf(directoryOf(params as Params), params.lease.providerLeaseId ?? "");

		if (!fs.existsSync(home)) throw new Error("there is no such sandbox");
		return (await execute(home, params as Command)) as never;
	},
});

export default plugin;
runWorker(plugin, import.meta.url);
