/**
 * Finds the addon: built from source in build/Release, else prebuilt in the platform packages. These
 * are optional dependencies of the published package, and package managers install those whose `os`,
 * `cpu` and `libc` match, as for esbuild and sharp; scripts/prebuild.js makes them.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { AddonUnavailableError } from '../errors';
import { unsupportedPlatform } from './platform';

/** Absolute paths. */
export interface AddonFiles {
  addon: string;
  /** Null: next to the addon, if there is one. */
  cudaBackend: string | null;
}

const REMEDY =
  'Prebuilt addons exist for linux-x64 and linux-arm64 with glibc 2.34 or later: install uniproc ' +
  'with its optional dependencies (npm install --include=optional). Elsewhere build from source: npm rebuild uniproc ' +
  '--build-from-source, or npm run build in a clone';

/** What to do where Node.js loads no addon at all; null: it does. */
export function enableAddons(cause: unknown): string | null {
  if ((cause as { code?: string } | undefined)?.code !== 'ERR_DLOPEN_DISABLED') return null;
  return 'start Node.js without --no-addons or, with --permission, with --allow-addons';
}

/** For example 'linux-x64, glibc 2.36'. */
function platform(): string {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  const libc = header.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : 'no glibc';
  return `${process.platform}-${process.arch}, ${libc}`;
}

export function addonUnavailable(what: string, cause?: unknown): AddonUnavailableError {
  const enable = enableAddons(cause);
  const message =
    enable === null
      ? `${what} (${platform()}). ${REMEDY}`
      : `${what.replace(/\.$/, '')}; ${enable}`;
  return new AddonUnavailableError(message, { cause });
}

/** The path of a file of a platform package; null if the package is not installed. */
function packaged(name: string, file: string): string | null {
  try {
    return require.resolve(`${name}/${file}`);
  } catch {
    return null;
  }
}

/**
 * The addon's files for this process. Throws AddonUnavailableError if there is no addon.
 * @param root the folder of this package
 */
export function addonFiles(root: string): AddonFiles {
  const built = path.join(root, 'build', 'Release', 'uniproc.node');
  if (existsSync(built)) return { addon: built, cudaBackend: null };
  const name = `@uniproc/${process.platform}-${process.arch}`;
  const addon = packaged(name, 'uniproc.node');
  if (!addon) {
    const unsupported = unsupportedPlatform();
    if (unsupported !== null) throw new AddonUnavailableError(unsupported);
    throw addonUnavailable(`no addon: ${built} and the package ${name} do not exist`);
  }
  return { addon, cudaBackend: packaged(`${name}-cuda`, 'uniproc_cuda.so') };
}
