/** The groups of a model's layers in the KV cache, as the native model takes them. */
import {
  groupLayers,
  type KVCacheConfig,
  type KVCacheGroup,
  type KVCacheSpec,
} from '../contract/kvCache';
import { InvalidStateError } from '../errors';

type LayerSpecs = ReadonlyMap<string, KVCacheSpec>;

/**
 * [numLayers]: each layer's group, in which layers without a spec are with the layer whose keys and
 * values they attend to. `kvLayers` [numLayers]: that layer; null: each its own.
 */
export function groupsByLayer(specs: LayerSpecs, kvLayers: readonly number[] | null): number[] {
  const groups = groupLayers(specs);
  const groupOf = (layer: string) =>
    groups.findIndex(({ layerNames }) => layerNames.includes(layer));
  if (kvLayers === null) return Array.from(specs.keys(), groupOf);
  return kvLayers.map((layer) => groupOf(layerName(layer)));
}

/** A layer's name in the KV cache. */
export const layerName = (layer: number) => `model.layers.${layer}.self_attn`;

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
