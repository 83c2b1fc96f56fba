import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/** java Early.java REQUESTS: a line each of URL, key, bytes, `length` or `chunked`. Prints a line each: the status, or the error. */
public class Early {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // HTTP/2 where the server takes it: Upgrade: h2c
        for (String line : Files.readAllLines(Path.of(words[0]))) {
            String[] told = line.split(" ");
            byte[] body = new byte[Integer.parseInt(told[2])];
            var publisher = told[3].equals("chunked")
                ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
                : BodyPublishers.ofByteArray(body);
            var request = HttpRequest.newBuilder(URI.create(told[0])).timeout(Duration.ofSeconds(20)).POST(publisher);
            if (!told[1].equals("-")) {
                request.header("X-API-Key", told[1]);
            }
            try {
                System.out.println(client.send(request.build(), BodyHandlers.ofString()).statusCode());
            } catch (Exception error) {
                System.out.println(error.toString().replace('\n', ' '));
            }
        }
    }
}
