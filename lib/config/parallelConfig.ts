/** The options of ranks that share a model. */
import { aliasField } from '../deprecation';
import { divisionFault } from '../model/division';
import type { EngineArgs } from './engineArgs';
import type { ParallelConfig, TransformerSpec } from './uniprocConfig';

/** The default of PyTorch's process groups. */
const DISTRIBUTED_TIMEOUT_MS = 300_000;

/** Throws what `fail` makes of a message. */
export function chooseParallel(
  args: EngineArgs,
  spec: TransformerSpec,
  fail: (message: string) => Error,
): ParallelConfig {
  const size = args.tensorParallelSize ?? 1;
  const backend = args.distributedExecutorBackend ?? 'uni';
  const fault = divisionFault(spec, size);
  if (fault !== null) throw fail(fault);
  if (size > 1 && backend === 'uni') {
    throw fail(
      `tensorParallelSize is ${size}, but distributedExecutorBackend 'uni' runs one rank; ` +
        "use 'external_launcher'",
    );
  }
  if (size > 1 && args.seed === undefined) {
    throw fail(
      `tensorParallelSize is ${size}, but seed is not set; give all ranks the same seed, so that ` +
        'they sample the same tokens',
    );
  }
  const parallel = {
    tensorParallelSize: size,
    distributedExecutorBackend: backend,
    distributedTimeoutMs: args.distributedTimeoutMs ?? DISTRIBUTED_TIMEOUT_MS,
    disableCustomAllReduce: args.disableCustomAllReduce ?? false,
    workerCls: args.workerCls ?? null,
    workerExtensionCls: args.workerExtensionCls ?? null,
  };
  aliasField(parallel, 'distributedTimeout', 'distributedTimeoutMs');
  return Object.freeze(parallel);
}
