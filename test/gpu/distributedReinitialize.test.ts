/** Running requests while GPU ranks join and leave. */
import {
  generateUndisturbed,
  specifyGrowingAndShrinking,
  specifyLeavingAndJoining,
} from '../support/reinitialization';
import { WORLD_SIZES, describeOnGpus } from './gpus';

/** Starting an engine on a GPU takes seconds, and initializing NCCL more. */
jest.setTimeout(180_000);

if (WORLD_SIZES.length > 0) beforeAll(generateUndisturbed);

describeOnGpus('reinitializeDistributed', (worldSize) => {
  if (worldSize === 2) specifyLeavingAndJoining();
  else specifyGrowingAndShrinking(worldSize);
});
