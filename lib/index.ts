/** Exports of the package. */
export { LLM, type CreateArgs } from './llm';
export type { EngineArgs } from './config/engineArgs';
export type {
  ChatOptions,
  ChatStreamOptions,
  GenerateOptions,
  PromptOptions,
  RequestOptions,
  StreamOptions,
} from './config/requestOptions';
export { SamplingParams, type SamplingParamsOptions } from './config/samplingParams';
export type { LoadProgress, UniprocConfig } from './config/uniprocConfig';
export {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from './config/reconfigureRequest';
export type { LLMEngine } from './engine/engine';
export type { Prompt } from './engine/inputProcessor';
export type { EndReason, EngineEvents, FinishedRequest, HistogramStats } from './engine/metrics';
export type {
  CompletionOutput,
  FinishReason,
  Logprob,
  OutputDelta,
  OutputStream,
  PositionLogprobs,
  RequestOutput,
} from './engine/outputs';
export type { StartupRecord } from './engine/startupRecord';
export type { EngineStats, KVCacheStats } from './engine/stats';
export {
  type ChatMessage,
  type ChatTemplateOptions,
  renderChatTemplate,
  type RenderChatOptions,
  type TextPart,
} from './tokenizer/chatTemplate';
export type { IncrementalDetokenizer } from './tokenizer/detokenizer';
export {
  type ApplyChatTemplateOptions,
  type DecodeOptions,
  type EncodeOptions,
  Tokenizer,
} from './tokenizer/tokenizer';
export * from './errors';

// Types of objects that each rank of a distributed engine exposes.
export type { ProcessGroup } from './distributed/processGroup';
export type {
  CommType,
  NativeCommunicator,
  NativeDeviceThread,
  NativeModelRunner,
  ReduceOp,
} from './native';

// For custom executors and workers.
export {
  Executor,
  type CreateOptions,
  type ExecutorClass,
  type RpcOptions,
  type StepOptions,
} from './executor/executor';
export { ExecutorWithExternalLauncher } from './executor/externalLauncher';
export { Future } from './executor/future';
export { UniProcExecutor } from './executor/uniProcExecutor';
export { type KVCacheConfig, KVCacheSpec } from './contract/kvCache';
export {
  AsyncModelRunnerOutput,
  EMPTY_MODEL_RUNNER_OUTPUT,
  type LogprobsLists,
  type ModelRunnerOutput,
  RaggedTokenIds,
} from './contract/modelRunnerOutput';
export type { GrammarOutput } from './contract/grammarOutput';
export type {
  CachedRequestData,
  NewRequestData,
  SchedulerOutput,
} from './contract/schedulerOutput';
export type { WeightBytes, WorkerSummary } from './contract/workerSummary';
export { Worker } from './worker/worker';
export { type SleepTag, type StepOutput, WorkerBase, type WorkerArgs } from './worker/workerBase';
export type { RpcMethod, WorkerWrapper } from './worker/workerWrapper';
