/** The typed error of each error code that another thread or the native layer reports. */
import {
  AddonUnavailableError,
  CheckpointError,
  CommunicatorError,
  ConfigError,
  CudaUnavailableError,
  DeviceError,
  InternalError,
  InvalidRequestError,
  InvalidStateError,
  NotSupportedError,
  OutOfMemoryError,
  PeerLostError,
  ShutdownError,
  type UniprocError,
} from './errors';

/** Makes the typed error for a code of the native layer. */
export function nativeError(
  code: string,
  message: string,
  file?: string,
  rank?: number,
): UniprocError {
  switch (code) {
    case 'OUT_OF_MEMORY':
      return new OutOfMemoryError(message);
    case 'CUDA_UNAVAILABLE':
      return new CudaUnavailableError(message);
    case 'DEVICE_FAILED':
      return new DeviceError(message);
    case 'REQUEST_INVALID':
      return new InvalidRequestError(message);
    case 'CHECKPOINT_INVALID':
      return new CheckpointError(file ?? 'checkpoint', message);
    case 'NOT_SUPPORTED':
      return new NotSupportedError(message, message);
    case 'SHUT_DOWN':
      return new ShutdownError(message);
    case 'INVALID_STATE':
      return new InvalidStateError(message);
    case 'CONFIG_INVALID':
      return new ConfigError(message);
    case 'ADDON_UNAVAILABLE':
      return new AddonUnavailableError(message);
    case 'PEER_LOST':
      return new PeerLostError(rank ?? null, message);
    case 'COMMUNICATOR_FAILED':
      return new CommunicatorError(message);
    case 'INTERNAL':
      return new InternalError(message);
    default:
      return new InternalError(`${message} (code ${code})`);
  }
}
