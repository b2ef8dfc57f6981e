// Asks a cloner for a voice and for a failure, as a service in Java would: with gRPC's defaults.
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import dev.precall.v1.CloneVoiceRequest;
import dev.precall.v1.CloningServiceGrpc;
import dev.precall.v1.GetVoiceRequest;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

final class Caller {
  public static void main(String[] arguments) throws Exception {
    var token = new Metadata();
    token.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + arguments[1]);
    var channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create())
        .intercept(MetadataUtils.newAttachHeadersInterceptor(token))
        .build();
    var client = CloningServiceGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS);

    var ivan = dev.precall.v1.Caller.newBuilder().setName("Ivan").setPhoneNumber("+31612345678");
    var sample = ByteString.copyFrom(Files.readAllBytes(Path.of(arguments[2])));
    var cloned = client.cloneVoice(CloneVoiceRequest.newBuilder().setCaller(ivan).setSample(sample).build());
    System.out.println(cloned.getVoice().getVoiceId());
    try {
      client.getVoice(GetVoiceRequest.newBuilder().setVoiceId("voice_of_nobody").build());
    } catch (StatusRuntimeException failure) {
      for (var detail : StatusProto.fromThrowable(failure).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          System.out.println(failure.getStatus().getCode() + " " + detail.unpack(ErrorInfo.class).getReason());
        }
      }
    }
    channel.shutdownNow();
  }
}
