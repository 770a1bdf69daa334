/** Requests that are running while a GPU's rank joins or leaves. */
import { generateUndisturbed, specifyLeavingAndJoining } from '../support/reinitialization';
import { WORLD_SIZES, describeOnGpus } from './gpus';

if (WORLD_SIZES.length > 0) beforeAll(generateUndisturbed);

describeOnGpus('reinitializeDistributed', (worldSize) => {
  if (worldSize === 2) specifyLeavingAndJoining();
});
