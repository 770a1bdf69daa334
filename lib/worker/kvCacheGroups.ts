/** The groups of a model's layers in the KV cache, as the native model takes them. */
import {
  groupLayers,
  type KVCacheConfig,
  type KVCacheGroup,
  type KVCacheSpec,
} from '../contract/kvCache';
import { InvalidStateError } from '../errors';

type LayerSpecs = ReadonlyMap<string, KVCacheSpec>;

/** [numLayers]: each layer's group. */
export function groupsByLayer(specs: LayerSpecs): number[] {
  const groups = groupLayers(specs);
  return Array.from(specs.keys(), (layer) =>
    groups.findIndex(({ layerNames }) => layerNames.includes(layer)),
  );
}

/** Throws INVALID_STATE if the config has other groups than the layers' specs make. */
export function requireGroups(specs: LayerSpecs, { kvCacheGroups }: KVCacheConfig): void {
  const namesOf = (groups: readonly KVCacheGroup[]) =>
    groups.map(({ layerNames }) => layerNames.join()).join('; ');
  const wanted = groupLayers(specs);
  const given = kvCacheGroups ?? wanted;
  if (namesOf(given) === namesOf(wanted)) return;
  throw new InvalidStateError(
    `initializeFromConfig was called with the KV cache groups ${namesOf(given)}; the model was ` +
      `loaded with ${namesOf(wanted)}`,
  );
}
