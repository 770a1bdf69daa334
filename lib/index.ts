/** Exports of the package. */
export { LLM } from './llm';
export type { CreateArgs } from './createArgs';
export type { EmbeddingOptions, EmbeddingOutput, EmbedOptions } from './embedding';
export {
  type ConfigOrArgs,
  type CreatedExecutor,
  createUniprocConfig,
  type EngineArgs,
  type ExecutorConstructor,
} from './executor/createConfig';
export type {
  ChatOptions,
  ChatPromptOptions,
  ChatStreamOptions,
  GenerateOptions,
  PromptOptions,
  RequestOptions,
  StreamOptions,
} from './config/requestOptions';
export type { ReplyOptions, ToolChoice } from './config/replyOptions';
export { SamplingParams, type SamplingParamsOptions } from './config/samplingParams';
export type {
  StructuralFormat,
  StructuralSchema,
  StructuralTag,
  TagFormat,
  TagText,
  TokenFormat,
} from './config/structuralTag';
export type { StructuredOutputs, StructuredOutputsOptions } from './config/structuredOutputs';
export type {
  CacheConfig,
  ClassReference,
  DeviceConfig,
  ExecutorReference,
  ExtensionReference,
  GenerationDefaults,
  LoadConfig,
  LoadProgress,
  ModelConfig,
  ParallelConfig,
  PoolingConfig,
  Quantization,
  QuantizationScheme,
  SchedulerConfig,
  TransformerConfig,
  TransformerSpec,
  UniprocConfig,
  WorkerReference,
} from './config/uniprocConfig';
export type { RequestLimits } from './config/limits';
export type { DeprecatedEngineArgs } from './config/oldNames';
export {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from './config/reconfigureRequest';
export type { LLMEngine } from './engine/engine';
export type { Params } from './engine/callParams';
export type { Prompt } from './engine/inputProcessor';
export type { TokenIds } from './engine/tokenIds';
export type { EndReason, EngineEvents, FinishedRequest, HistogramStats } from './engine/metrics';
export type {
  AssistantMessage,
  CompletionOutput,
  FinishReason,
  Logprob,
  MessageDelta,
  OutputDelta,
  OutputStream,
  PositionLogprobs,
  RequestMetrics,
  RequestOutput,
  ToolCall,
  ToolCallDelta,
  Usage,
} from './engine/outputs';
export type { DiagnosticsMessages, RequestStartMessage, StepMessage } from './engine/diagnostics';
export type { KVCacheGroupSummary, StartupRecord } from './engine/startupRecord';
export type { EngineStats, KVCacheStats } from './engine/stats';
export type { PrefixCacheStats } from './engine/kvCacheManager';
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
  type LoadOptions,
  Tokenizer,
} from './tokenizer/tokenizer';
export * from './errors';

// Models by name, and the server.
export { pull, type PullOptions, type PullProgress } from './hub/pull';
export { createHandler, type Handler } from './server/handler';
export type { HandlerOptions } from './server/handlerOptions';
export { type NodeListener, type NodeListenerOptions, toNodeListener } from './server/nodeListener';
export type { ServableLLM, Served } from './server/servedModels';

// Types of objects that each rank of a distributed engine exposes.
export type { LoadableModel } from './model/load';
export type { ProcessGroup } from './distributed/processGroup';
export type {
  CommType,
  DeviceProperties,
  DType,
  ExpertsSpec,
  Fp8CacheSpec,
  MemoryInfo,
  ModelSpec,
  NativeCommunicator,
  NativeDeviceThread,
  NativeEvent,
  NativeModelRunner,
  NativeRequest,
  NativeSampling,
  OtherHeads,
  ParameterSource,
  ReduceOp,
  RopeScaling,
  RopeSpec,
  StepBuffers,
  StepTimes,
  StorageType,
  StoredTensor,
  WeightFormat,
} from './native';
export type { Strides, TensorLayout } from './model/spec';

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
export { type DistributedArgs, UniProcExecutor } from './executor/uniProcExecutor';
export type { CacheDType } from './config/dtype';
export { type KVCacheConfig, type KVCacheGroup, KVCacheSpec, NO_BLOCK } from './contract/kvCache';
export {
  AsyncModelRunnerOutput,
  EMPTY_MODEL_RUNNER_OUTPUT,
  type LogprobsLists,
  type ModelRunnerOutput,
  RaggedTokenIds,
  type ReadyEvent,
} from './contract/modelRunnerOutput';
export type { GrammarOutput } from './contract/grammarOutput';
export type {
  CachedRequestData,
  NewRequestData,
  PoolingParams,
  SchedulerOutput,
} from './contract/schedulerOutput';
export type {
  BlockType,
  QuantizedType,
  WeightBytes,
  WorkerSummary,
} from './contract/workerSummary';
export { HostEvent } from './worker/hostEvent';
export { Worker } from './worker/worker';
export { type SleepTag, type StepOutput, WorkerBase, type WorkerArgs } from './worker/workerBase';
export type { InputBatch } from './worker/inputBatch';
export { ModelRunner } from './worker/modelRunner';
export type { Lock, RpcMethod, WorkerKwargs, WorkerWrapper } from './worker/workerWrapper';
