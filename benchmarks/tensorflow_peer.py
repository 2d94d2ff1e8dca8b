"""pix2pix as the TensorFlow tutorial has it, beside which train_throughput.py measures: in an environment of its own,

    python -m venv tfenv && tfenv/bin/pip install tensorflow-cpu
    tfenv/bin/python benchmarks/tensorflow_peer.py --width 16 --epochs 3

since TensorFlow asks for other versions of what the project needs. A tf.data pipeline adds the noise, a step is one
tf.function, validation is by tf.image; networks, losses, rates and data are those of model/ at its defaults, written in
Keras. Without --epochs it trains one epoch for each line on its standard input and answers with a line of JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

NOISE_STD = 30 / 127.5  # on [-1, 1]
NUM_VALIDATION = 5_000  # the last of the training images
MEASURED = 1_000  # of them
L1_WEIGHT, RATE, BETA1 = 100.0, 2e-4, 0.5


def training_images(folder: Path) -> np.ndarray:
    """Fashion-MNIST, (60000, 32, 32, 1) uint8."""
    content = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))


def to_unit(images: tf.Tensor) -> tf.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def noised(clean: np.ndarray) -> np.ndarray:
    """The same noisy images as model.data.noise makes for validation."""
    draws = [np.random.Generator(np.random.Philox(key=[1, index])) for index in range(len(clean))]
    noise = np.stack([draw.standard_normal(clean.shape[1:], dtype=np.float32) for draw in draws])
    return np.clip(clean + np.float32(NOISE_STD) * noise, -1, 1)


# --- the networks ---------------------------------------------------------------------------------------------------


def _convolution(layer: type, filters: int, **options: object) -> tf.keras.layers.Layer:
    return layer(filters, 4, kernel_initializer=tf.keras.initializers.RandomNormal(0.0, 0.02), **options)


def _norm() -> tf.keras.layers.Layer:
    """torch's momentum and epsilon: Keras's own statistics are not there yet after a short training."""
    return tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)


def make_generator(width: int) -> tf.keras.Model:
    """Noisy (N, 32, 32, 1) to clean: down to 1x1 in five blocks, up again with skips."""
    layers = tf.keras.layers
    noisy = x = layers.Input((32, 32, 1))
    skips = []
    for i, filters in enumerate((width, 2 * width, 4 * width, 8 * width, 8 * width)):
        x = _convolution(layers.Conv2D, filters, strides=2, padding="same", use_bias=False)(x)
        x = layers.LeakyReLU(negative_slope=0.2)(_norm()(x) if i else x)
        skips.append(x)
    for i, filters in enumerate((8 * width, 4 * width, 2 * width, width)):
        x = _norm()(_convolution(layers.Conv2DTranspose, filters, strides=2, padding="same", use_bias=False)(x))
        x = layers.ReLU()(layers.Dropout(0.5)(x) if i < 3 else x)
        x = layers.Concatenate()([x, skips[3 - i]])
    x = _convolution(layers.Conv2DTranspose, 1, strides=2, padding="same", activation="tanh")(x)
    return tf.keras.Model(noisy, x)


def make_discriminator(width: int) -> tf.keras.Model:
    """Noisy and candidate to (N, 6, 6, 1) logits, each of a patch of 34x34 pixels."""
    layers = tf.keras.layers
    noisy, candidate = layers.Input((32, 32, 1)), layers.Input((32, 32, 1))
    x = layers.Concatenate()([noisy, candidate])
    x = layers.LeakyReLU(negative_slope=0.2)(_convolution(layers.Conv2D, width, strides=2, padding="same")(x))
    x = _convolution(layers.Conv2D, 2 * width, strides=2, padding="same", use_bias=False)(x)
    x = layers.LeakyReLU(negative_slope=0.2)(_norm()(x))
    x = _convolution(layers.Conv2D, 4 * width, use_bias=False)(layers.ZeroPadding2D()(x))
    x = layers.LeakyReLU(negative_slope=0.2)(_norm()(x))
    return tf.keras.Model([noisy, candidate], _convolution(layers.Conv2D, 1)(layers.ZeroPadding2D()(x)))


# --- the training ---------------------------------------------------------------------------------------------------


class Training:
    """Both networks; an epoch at a time."""

    def __init__(self, images: np.ndarray, *, width: int, batch: int, count: int, threads: int) -> None:
        self.generator, self.discriminator = make_generator(width), make_discriminator(width)
        self._adam_g, self._adam_d = (tf.keras.optimizers.Adam(RATE, beta_1=BETA1) for _ in range(2))
        self._cross_entropy = tf.keras.losses.BinaryCrossentropy(from_logits=True)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        train = tf.data.Dataset.from_tensor_slices(images[:count]).shuffle(count)
        # The noise of a whole batch at once: an image at a time is slower.
        train = train.batch(batch, drop_remainder=True).map(self._with_noise, num_parallel_calls=tf.data.AUTOTUNE)
        self._train = train.prefetch(tf.data.AUTOTUNE).with_options(options)
        clean = images[-NUM_VALIDATION:][:MEASURED].astype(np.float32) / np.float32(127.5) - np.float32(1)
        pairs = tf.data.Dataset.from_tensor_slices((noised(clean), clean))
        self._validation = pairs.batch(250).cache().with_options(options)

    @staticmethod
    def _with_noise(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        clean = to_unit(images)
        return tf.clip_by_value(clean + tf.random.normal(tf.shape(clean), stddev=NOISE_STD), -1.0, 1.0), clean

    @tf.function
    def _step(self, noisy: tf.Tensor, clean: tf.Tensor) -> None:
        with tf.GradientTape() as tape_g, tf.GradientTape() as tape_d:
            fake = self.generator(noisy, training=True)
            real_logits = self.discriminator([noisy, clean], training=True)
            fake_logits = self.discriminator([noisy, fake], training=True)
            adversarial = self._cross_entropy(tf.ones_like(fake_logits), fake_logits)
            loss_g = adversarial + L1_WEIGHT * tf.reduce_mean(tf.abs(clean - fake))
            loss_d = self._cross_entropy(tf.ones_like(real_logits), real_logits)
            loss_d += self._cross_entropy(tf.zeros_like(fake_logits), fake_logits)
        weights_g, weights_d = self.generator.trainable_variables, self.discriminator.trainable_variables
        gradients_g, gradients_d = tape_g.gradient(loss_g, weights_g), tape_d.gradient(loss_d, weights_d)
        self._adam_g.apply_gradients(zip(gradients_g, weights_g, strict=True))
        self._adam_d.apply_gradients(zip(gradients_d, weights_d, strict=True))

    @tf.function
    def _measure(self, noisy: tf.Tensor, clean: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        denoised = self.generator(noisy, training=False)
        return tf.image.ssim(denoised, clean, max_val=2.0), tf.image.psnr(denoised, clean, max_val=2.0)

    def run_epoch(self) -> dict[str, float]:
        """Train, and look at the validation images."""
        began = time.perf_counter()
        for noisy, clean in self._train:
            self._step(noisy, clean)
        trained = time.perf_counter()
        measured = [self._measure(noisy, clean) for noisy, clean in self._validation]
        ssim, psnr_db = (float(tf.reduce_mean(tf.concat(parts, 0))) for parts in zip(*measured, strict=True))
        ended = time.perf_counter()
        seconds = {"seconds": ended - began, "validation_seconds": ended - trained}
        return {**seconds, "ssim": ssim, "psnr_db": psnr_db}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048, help="an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="as many, and print the speed of each")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), metavar="FOLDER")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    tf.random.set_seed(0)
    training = Training(
        training_images(given.data), width=given.width, batch=given.batch, count=given.images, threads=given.threads
    )
    networks = {"generator": training.generator, "discriminator": training.discriminator}
    sizes = {name: sum(int(tf.size(w)) for w in made.trainable_variables) for name, made in networks.items()}
    print(json.dumps({"tensorflow": tf.__version__, **sizes}), flush=True)
    for _ in range(given.epochs) if given.epochs else sys.stdin:
        told = training.run_epoch()
        if given.epochs:
            speed = given.images // given.batch * given.batch / told["seconds"]
            share, psnr_db = told["validation_seconds"] / told["seconds"], told["psnr_db"]
            print(f"{speed:.0f} images/s, validation {share:.0%}, PSNR {psnr_db:.2f} dB, SSIM {told['ssim']:.3f}")
        else:
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
