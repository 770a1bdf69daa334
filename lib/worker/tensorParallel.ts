/**
 * How the ranks of a world divide a model (Shoeybi et al. 2019, Megatron-LM). Each has some of the
 * heads and some of the MLP's columns: what it computes of q, k, v, gate and up it needs no other
 * rank for, and what o and down make of them is a sum over the ranks. The vocabulary is divided too,
 * in the embedding and in the head.
 */
import { divisionFault } from '../config/division';
import type { TransformerSpec } from '../config/uniprocConfig';
import { ConfigError } from '../errors';
import type { ModelSpec } from '../native';

/** Some of `of` things in a row: `count` of them from `first` on. */
export interface Share {
  first: number;
  count: number;
  of: number;
}

/** What a rank has of the things that are divided. */
export interface RankShares {
  heads: Share;
  /** Where there are more ranks than these, several have the same one. */
  kvHeads: Share;
  intermediate: Share;
  /** The rows it has in files: none are padding. */
  vocab: Share;
}

/** Throws ConfigError when the model cannot be so divided. */
export function sharesOf(spec: TransformerSpec, rank: number, worldSize: number): RankShares {
  const fault = divisionFault(spec, worldSize);
  if (fault !== null) throw new ConfigError(fault);
  const divide = (of: number): Share => ({
    first: Math.floor((rank * of) / worldSize),
    count: Math.max(1, of / worldSize),
    of,
  });
  const { start, size } = vocabShard(spec, rank, worldSize);
  const first = Math.min(start, spec.vocabSize);
  return {
    heads: divide(spec.numHeads),
    kvHeads: divide(spec.numKvHeads),
    intermediate: divide(spec.intermediateSize),
    vocab: { first, count: Math.min(size, spec.vocabSize - first), of: spec.vocabSize },
  };
}

/** Of one size on every rank, so that the last ranks' may go beyond the vocabulary. */
function vocabShard({ vocabSize }: TransformerSpec, rank: number, worldSize: number) {
  const size = Math.ceil(vocabSize / worldSize);
  return { start: rank * size, size };
}

/**
 * The share of one rank, as the native model takes it. Throws ConfigError, naming both numbers, when
 * the model cannot be divided among `worldSize` ranks.
 */
export function shardSpec(
  spec: TransformerSpec,
  rank: number,
  worldSize: number,
): Omit<ModelSpec, 'dtype'> {
  const { mlpBias, outputBias, ...whole } = spec;
  const { heads, kvHeads, intermediate } = sharesOf(spec, rank, worldSize);
  return {
    ...whole,
    numHeads: heads.count,
    numKvHeads: kvHeads.count,
    intermediateSize: intermediate.count,
    vocabShard: vocabShard(spec, rank, worldSize),
    outputBias: outputBias && rank === 0,
    gateUpBias: mlpBias,
    downBias: mlpBias && rank === 0,
  };
}
