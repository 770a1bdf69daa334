/** `uniproc doctor`: what this machine has for the library, what would run, and what is missing. */
import { readdirSync, readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  type Cuda,
  type CudaProblem,
  isMemoryFull,
  type NativeDeviceThread,
  native,
  openGpu,
} from './native';
import { unsupportedPlatform } from './native/platform';
import { enableAddons } from './native/platformPackage';

export interface Diagnosis {
  /** The lines to print. */
  text: string;
  /** Whether the addon and all visible GPUs can be used. */
  isHealthy: boolean;
}

const ROOT = path.resolve(__dirname, '..');
const GIB = 2 ** 30;
const gib = (bytes: number) => `${(bytes / GIB).toFixed(1)} GiB`;

/** The lines: a label of a fixed width, a value, and a remedy below it. */
class Report {
  readonly #lines: string[] = [];

  add(label: string, value: string, remedy?: string): void {
    this.#lines.push(`${label.padEnd(13)} ${value}`);
    if (remedy !== undefined) this.#lines.push(`${' '.repeat(13)} fix: ${remedy}`);
  }

  addProblem(label: string, { reason, remedy }: CudaProblem, before = ''): void {
    this.add(label, before + reason, remedy);
  }

  conclude(...lines: string[]): string {
    return [...this.#lines, '', ...lines, ''].join('\n');
  }
}

/** Opens every visible GPU for a moment, and writes nothing. */
export async function diagnose(): Promise<Diagnosis> {
  const report = new Report();
  const { version } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
    version: string;
  };
  report.add('uniproc', `${version}, Node.js ${process.version}, ${process.platform} ${os.arch()}`);
  try {
    native();
  } catch (error) {
    return withoutAddon(report, error as Error);
  }
  const { file, compiler } = native().buildInfo;
  const isPrebuilt = path.basename(path.resolve(file, '..', '..')) === '@uniproc';
  const origin = isPrebuilt ? 'prebuilt' : 'built from source';
  report.add('addon', `${file}, ${origin} with ${compiler}`);
  await addHost(report);
  const cuda = await native().readCuda();
  addDriver(report, cuda);
  const { unusable, device } = await addDevices(report, cuda);
  addLibraries(report, cuda);
  const { hasGpu } = cuda.driver;
  const isHealthy = !hasGpu || (cuda.driver.problem === null && unusable.length === 0);
  const conclusion = `LLM.create({}) runs on device '${device}'`;
  if (!hasGpu) {
    const text = report.conclude(`${conclusion}: there is no GPU for this process`);
    return { text, isHealthy };
  }
  if (isHealthy) return { text: report.conclude(conclusion), isHealthy };
  const named = unusable.length > 0 ? unusable.join(', ') : 'the NVIDIA driver';
  return { text: report.conclude(`${conclusion}; ${named} cannot be used`), isHealthy };
}

/** What mends an addon that cannot be loaded. */
function addonRemedy({ cause }: Error): string {
  const enable = enableAddons(cause);
  if (enable !== null) return enable;
  if (unsupportedPlatform() !== null) return 'run it on Linux, in a container for example';
  if (!ROOT.includes(`${path.sep}node_modules${path.sep}`)) return 'run npm run build';
  const rebuild = 'npm rebuild uniproc --build-from-source';
  // Without a cause, there is no file.
  if (cause !== undefined) return `run ${rebuild}`;
  return `run npm install --include=optional or, with a compiler, ${rebuild}`;
}

function withoutAddon(report: Report, error: Error): Diagnosis {
  report.add('addon', error.message, addonRemedy(error));
  report.add('processor', processor());
  report.add('memory', gib(Math.min(os.totalmem(), process.constrainedMemory() || Infinity)));
  const driver = driverRelease();
  report.add('driver', driver === null ? 'none' : [driver, ...pciDevices()].join(', '));
  return {
    text: report.conclude('nothing runs: the addon cannot be loaded'),
    isHealthy: false,
  };
}

const processor = () =>
  `${os.cpus().at(0)?.model ?? os.arch()}, ${os.availableParallelism()} cores`;

async function addHost(report: Report): Promise<void> {
  const cpu: NativeDeviceThread = new (native().DeviceThread)('cpu', 0, 1);
  try {
    const { capability } = await cpu.open();
    const { total, free } = await cpu.memory();
    report.add('processor', `${processor()}, ${capability}`);
    const limit = total < os.totalmem() ? `, limited to ${gib(total)} by a cgroup` : '';
    report.add('memory', `${gib(os.totalmem())}${limit}; ${gib(free)} available`);
  } finally {
    await cpu.shutdown();
  }
}

function addDriver(report: Report, { driver }: Cuda): void {
  if (driver.problem !== null && driver.cudaVersion === null) {
    report.addProblem('driver', driver.problem);
    return;
  }
  const release = driverRelease();
  const version = `${release === null ? '' : `${release}, `}up to CUDA ${driver.cudaVersion}`;
  if (driver.problem === null) report.add('driver', version);
  else report.addProblem('driver', driver.problem, `${version}; `);
}

/** The GPUs that cannot be used, and the device that LLM.create({}) takes. */
async function addDevices(report: Report, { devices, backend }: Cuda) {
  const unusable: string[] = [];
  let device: 'cuda' | 'cpu' = 'cpu';
  for (const [i, { name, totalMemory, capability, problem }] of devices.entries()) {
    const label = `cuda:${i}`;
    const text = `${name}, ${gib(totalMemory)}, compute capability ${capability}`;
    const error = problem === null ? await openGpu(i) : null;
    if (problem === null && (error === null || isMemoryFull(error)) && i === 0) device = 'cuda';
    if (problem === null && error === null) {
      report.add(label, text);
      continue;
    }
    unusable.push(label);
    const said = `${text}; cannot be used: `;
    if (error !== null) report.add(label, said + error.message);
    else if (problem?.reason === backend.problem?.reason) {
      report.add(label, `${said}the CUDA backend, see below`);
    } else if (problem !== null) report.addProblem(label, problem, said);
  }
  if (devices.length > 1) report.add('peer access', peerAccess(devices));
  return { unusable, device };
}

function peerAccess(devices: Cuda['devices']): string {
  const missing = devices.flatMap(({ canAccess }, i) =>
    canAccess.flatMap((can, j) => (can || i === j ? [] : [`cuda:${i} to cuda:${j}`])),
  );
  if (missing.length === 0) return 'between all GPUs';
  const all = missing.length === devices.length * (devices.length - 1);
  return all ? 'none' : `between all GPUs except ${missing.join(', ')}`;
}

function addLibraries(report: Report, { backend, cublasLt, nccl }: Cuda): void {
  const { file, cudaVersion, architectures, problem } = backend;
  if (problem !== null) report.addProblem('CUDA backend', problem);
  else report.add('CUDA backend', `${file}, CUDA ${cudaVersion} for ${architectures}`);
  for (const [label, library] of [
    ['cuBLASLt', cublasLt],
    ['NCCL', nccl],
  ] as const) {
    if (library.problem !== null) report.addProblem(label, library.problem);
    else report.add(label, `${library.version}, ${library.file}`);
  }
}

/** The kernel module's release, such as '580.65.06'; null: not loaded. */
function driverRelease(): string | null {
  try {
    const text = readFileSync('/proc/driver/nvidia/version', 'utf8');
    return /\b\d{3,}\.\d+(?:\.\d+)?\b/.exec(text)?.[0] ?? null;
  } catch {
    return null;
  }
}

/** Names of the GPUs that the kernel module has. */
function pciDevices(): string[] {
  const folder = '/proc/driver/nvidia/gpus';
  try {
    return readdirSync(folder).map((address) => {
      const text = readFileSync(path.join(folder, address, 'information'), 'utf8');
      return /^Model:\s*(.+)$/m.exec(text)?.[1] ?? address;
    });
  } catch {
    return [];
  }
}
